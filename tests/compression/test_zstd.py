"""Zstandard: shorter messages where bytes differ in frequency, and nothing made of forged ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import site_services
import torch
from hypothesis import given
from hypothesis import strategies as st
from site_services import Places
from torch import Tensor

from fedsight.aggregation.mean import Mean
from fedsight.compression.difference import Difference
from fedsight.compression.pipeline import HEADER, LENGTH, Pipeline, _checksum, _number
from fedsight.compression.settings import Codecs
from fedsight.compression.zstd import Zstd
from fedsight.core.errors import SiteError
from fedsight.core.types import PartSpec
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import federate
from fedsight.program.program import Speed

EIGHT_BITS: dict[str, Any] = {"name": "quantise", "bits": 8}


def pipeline(*steps: Any) -> Pipeline:
    found = Codecs.model_validate({"up": {"steps": list(steps)}}, strict=False).up.pipeline
    assert found is not None
    return found


def heavy(count: int) -> Tensor:
    draws = torch.Generator().manual_seed(2)
    return torch.randn(count, generator=draws) * torch.rand(count, generator=draws) ** 4


def forged(content: bytes) -> Tensor:
    """A message with these bytes in the place of the packed ones, and a right checksum."""
    body = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    length = LENGTH + 5 + len(body)
    head = _number(length, LENGTH), _number(1, 1), _number(_checksum(body), 4)
    return torch.cat([*head, body])


@pytest.mark.parametrize("steps", [[], [EIGHT_BITS], ["low-rank"], ["top-k", "float16"]])
@given(values=st.lists(st.floats(-6e4, 6e4, width=32), max_size=300), key=st.integers(0, 2**63 - 1))
def test_what_is_packed_is_what_the_other_steps_make(
    steps: list[Any], values: list[float], key: int
) -> None:
    packed, vector = pipeline(*steps, "zstd"), torch.tensor(values)
    sent = packed.encode(vector, key)
    assert len(sent) <= packed.bytes(len(values))
    assert packed.length_at(memoryview(sent.numpy()), 0) == len(sent)
    found = packed.decode(sent, len(values))
    if not steps:
        assert torch.equal(found, vector)
    else:
        plain = pipeline(*steps)
        assert torch.equal(found, plain.decode(plain.encode(vector, key), len(values)))


def test_it_saves_what_the_frequencies_allow() -> None:
    """Within a tenth of the entropy of the levels (Shannon 1948), and nothing of random bits."""
    values = heavy(1 << 16)
    plain, packed = pipeline(EIGHT_BITS), pipeline(EIGHT_BITS, "zstd")
    levels = plain.encode(values, 3)[HEADER + 4 * 16 :].numpy()
    shares = np.bincount(levels, minlength=256) / len(levels)
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    assert entropy < 7
    assert 8 * len(packed.encode(values, 3)) / len(values) == pytest.approx(entropy, rel=0.1)
    random = pipeline("eden", "zstd")
    assert len(random.encode(values, 3)) <= random.bytes(len(values))
    assert random.bytes(len(values)) == pipeline("eden").bytes(len(values)) + LENGTH


@pytest.mark.parametrize("length", [10, 1 << 20])
def test_no_more_is_unpacked_than_is_due(length: int) -> None:
    """A frame of many megabytes is a few bytes, and none of them is made."""
    bomb = Zstd().pack(torch.zeros(1 << 26, dtype=torch.uint8))
    assert len(bomb) < 1 << 14
    with pytest.raises(ValueError, match="other than"):
        Zstd().unpack(bomb, length)


def test_a_forged_message_is_refused() -> None:
    codec, values = pipeline(EIGHT_BITS, "zstd"), torch.zeros(4096)
    sound = codec.encode(values, 0)
    packed = bytes(sound[LENGTH + 5 :].numpy())
    assert torch.equal(codec.decode(forged(packed), 4096), values)
    other = bytes(Zstd().pack(torch.zeros(99, dtype=torch.uint8)).numpy())
    for bad in (b"\0" * 50, packed[:-1], packed + b"\0", packed + packed, other, b""):
        with pytest.raises(ValueError, match=r"unpack|bytes, not"):
            codec.decode(forged(bad), 4096)


@pytest.mark.parametrize("stated", [0, 3, 1 << 62])
def test_a_forged_length_is_refused_with_the_name_of_its_site(stated: int) -> None:
    specs = {part: PartSpec((500,), codec=pipeline(EIGHT_BITS, "zstd")) for part in "ab"}
    sent = {part: spec.encode(heavy(500), 1) for part, spec in specs.items()}
    data = bytearray(messages.pack(sent.values()))
    found = messages.unpack_parts(data, specs)
    assert all(torch.equal(found[part], sent[part]) for part in specs)
    data[:LENGTH] = stated.to_bytes(LENGTH, "little")
    if stated > 3:
        with pytest.raises(ValueError, match="the most"):
            messages.unpack_parts(data, specs)
    sent["a"][:LENGTH] = _number(stated, LENGTH)
    total = Mean().aggregator(specs, 2)
    with pytest.raises(SiteError, match="site 'ward' cannot be decoded"):
        total.add(sent, 1, "ward")
    with pytest.raises(SiteError, match="site 'ward' is not"):
        total.add({**sent, "a": torch.zeros(5000, dtype=torch.uint8)}, 1, "ward")
    assert not total.tensors["b"].any()


def test_a_difference_may_differ_in_length() -> None:
    codec = Difference(pipeline("float16", "zstd"), 900, 1000)
    held, model = torch.zeros(1000), torch.zeros(1000)
    model[:3], model[900:] = 1.0, heavy(100)
    message = codec.encode(held, model, 4)
    assert len(message) < codec.bytes / 2
    assert torch.equal(codec.decode(held, message), model)
    with pytest.raises(ValueError, match="bytes, not"):
        codec.decode(held, message[:-1])


def test_what_is_counted_is_what_is_sent_and_engines_agree() -> None:
    steps = [EIGHT_BITS, "zstd"]
    of = federations.federation(codec={"up": {"steps": steps}, "down": {"steps": steps}})
    plain = federations.federation(codec={way: {"steps": steps[:1]} for way in ("up", "down")})
    diary, other, expected = federations.Diary(), federations.Diary(), federations.Diary()
    one = federations.learn(of, diary=diary)
    same = federations.learn(plain, diary=expected)
    engine = WorkerEngine(of, Speed(workers=2))
    try:
        two = federations.learn(of, engine, other)
    finally:
        engine.close()
    assert len({federations.sha(found.vector) for found in (one, two, same)}) == 1
    for key in ("bytes_up", "bytes_down"):
        assert [line[key] for line in diary.lines] == [line[key] for line in other.lines]
        assert diary.lines[1][key] < expected.lines[1][key]


@pytest.mark.parametrize(
    ("sections", "where", "cause"),
    [
        ({"codec": {"up": {"steps": ["zstd", "float16"]}}}, "codec.up.steps.0", "all other"),
        (
            {"codec": {"up": {"steps": ["rotate", "zstd"]}}, "secure": {"name": "secagg"}},
            "codec.up.steps",
            "the length of a message would tell",
        ),
        (
            {"codec": {"down": {"steps": ["float16", "zstd"]}}, "secure": {"name": "secagg"}},
            "codec.down.steps",
            "the length of a message would tell",
        ),
        (
            {"codec": {"up": {"steps": ["zstd"]}}, "privacy": {"name": "central"}},
            "codec.up.steps",
            "before noise is added",
        ),
    ],
)
def test_it_is_refused_where_a_length_would_tell_of_images(
    sections: dict[str, Any], where: str, cause: str
) -> None:
    problems = federations.program(**sections).check()
    assert any(one.where == where and cause in one.cause for one in problems)


@pytest.mark.parametrize("privacy", ["local", "example"])
def test_it_is_permitted_after_noise(privacy: str) -> None:
    rounds = {"rounds": 2, "weighting": "uniform"}
    codec = {"up": {"steps": [EIGHT_BITS, "zstd"]}, "down": {"steps": ["float16", "zstd"]}}
    program = federations.program(codec=codec, privacy={"name": privacy}, rounds=rounds)
    assert not [one for one in program.check() if one.where.startswith("codec")]


@dataclass
class Forging:
    """A link on which the site north states another length of its reply, if that is given."""

    link: Link
    stated: int = 0

    @property
    def sites(self) -> list[str]:
        return list(self.link.sites)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        text, data = self.link.ask(site, kind, header, body, timeout)
        fields = json.loads(text)
        if self.stated and site == "north" and "bytes" in fields:
            text = json.dumps({**fields, "bytes": self.stated})
        return text, data


@pytest.mark.parametrize("stated", [0, 1 << 40, 40])
def test_a_site_on_another_machine_states_the_length_of_its_reply(
    places: Places, site_images: Path, stated: int
) -> None:
    """Nothing is fetched of more than there can be, and what was cut off is not used."""
    rounds = {"rounds": 1, "quorum": 2}
    codec = {"up": {"steps": [EIGHT_BITS, "zstd"]}}
    program = site_services.program(site_images, codec=codec, rounds=rounds)
    federation, link = places.meet(program)
    diary, here = federations.Diary(), federations.Diary()
    site_services.learn(federation, Forging(link, stated), diary)
    federations.learn(federate(program), diary=here)
    if not stated:
        assert site_services.figures(diary) == site_services.figures(here)
        assert diary.lines[0]["bytes_up"] == here.lines[0]["bytes_up"]
        return
    assert diary.lines[0]["sites"] == ["south", "west"]
    said = "announced" if stated > 40 else "site 'north' cannot be read: 40 bytes, not"
    assert said in diary.lines[0]["rejected"]["north"]
