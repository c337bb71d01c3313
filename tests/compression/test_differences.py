"""Orders as encoded differences: every site trains from the same decoded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import federations
import pytest
import site_services
import torch
from hypothesis import given
from hypothesis import strategies as st
from site_services import Places
from torch import Tensor

from fedsight.compression.difference import Difference
from fedsight.compression.pipeline import HEADER
from fedsight.compression.settings import Codecs
from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link
from fedsight.engines.remote.models import digest_of
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

TWO_BITS: dict[str, Any] = {"down": {"steps": [{"name": "eden", "bits": 2}]}}
CODECS: dict[str, list[Any]] = {
    "two bits": TWO_BITS["down"]["steps"],
    "one bit": [{"name": "eden", "scale": "least"}],
    "few": [{"name": "top-k", "share": 0.2}, {"name": "quantise", "bits": 4, "block": 64}],
    "half": ["float16"],
}


def difference(steps: list[Any], learnt: int, values: int) -> Difference:
    pipeline = Codecs.model_validate({"down": {"steps": steps}}, strict=False).down.pipeline
    assert pipeline is not None
    return Difference(pipeline, learnt, values)


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", CODECS.values(), ids=CODECS)
def test_what_a_site_has_reaches_a_model_that_stands_still(steps: list[Any]) -> None:
    """Gruntkowska et al. 2022 (EF21-P), equation 9: each difference holds the last one's error."""
    codec, model, held = difference(steps, 500, 500), drawn(500), torch.zeros(500)
    for key in range(60):
        message = codec.encode(held, model, key)
        assert len(message) == codec.bytes
        held = codec.decode(held, message)
    assert float((held - model).norm()) < 1e-3 * float(model.norm())


@pytest.mark.parametrize("steps", CODECS.values(), ids=CODECS)
def test_what_a_site_has_never_moves_far_from_a_model_that_moves(steps: list[Any]) -> None:
    codec, held, model = difference(steps, 500, 500), torch.zeros(500), torch.zeros(500)
    for key in range(100):
        model = model + drawn(500, key)
        held = codec.decode(held, codec.encode(held, model, key))
    assert float((held - model).norm()) < 10 * 500**0.5


def test_running_statistics_travel_as_they_are() -> None:
    codec, held, model = difference(CODECS["one bit"], 90, 100), drawn(100), drawn(100, 1)
    found = codec.decode(held, codec.encode(held, model, 7))
    assert torch.equal(found[90:], model[90:])
    assert not torch.equal(found[:90], model[:90])


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_message_that_was_altered_or_cut_off_makes_no_model(place: int, bit: int) -> None:
    codec, held = difference(CODECS["two bits"], 75, 75), drawn(75)
    sent = codec.encode(held, drawn(75, 1), 5)
    altered = sent.clone()
    altered[place % len(sent)] ^= 1 << bit
    for bad in (sent[:-1], sent[:2], torch.cat([sent, sent[:1]]), altered):
        with pytest.raises(ValueError, match=r"bytes, not|version|checksum"):
            codec.decode(held, bad)
    with pytest.raises(ValueError, match="75 values, not 74"):
        codec.decode(held[:74], sent)


def trained(of: Federation, workers: int = 0) -> tuple[Any, federations.Diary]:
    diary = federations.Diary()
    engine = WorkerEngine(of, Speed(workers=workers)) if workers else InProcessEngine(of)
    try:
        return federations.learn(of, engine, diary), diary
    finally:
        engine.close()


@pytest.mark.parametrize(
    "sections",
    [{}, {"algorithm": {"name": "scaffold"}}, {"model": {"norm": "batch"}}],
    ids=["fedavg", "scaffold", "BatchNorm"],
)
def test_engines_agree_and_the_model_is_what_sites_have(sections: dict[str, Any]) -> None:
    of = federations.federation(
        codec=TWO_BITS, rounds={"rounds": 4, "cohort": 2, "keep": "last"}, **sections
    )
    one, diary = trained(of)
    two, other = trained(of, workers=2)
    assert federations.sha(one.vector) == federations.sha(two.vector)
    assert site_services.figures(diary) == site_services.figures(other)
    last = one.checkpoint
    assert last.held is not None
    assert torch.equal(one.travelling, last.held.vector)
    assert not torch.equal(last.vector, last.held.vector)
    travels = of.layout.buffer
    assert torch.equal(last.vector[travels], last.held.vector[travels])


def test_bytes_are_those_of_messages_whole_models_and_nothing_for_the_first() -> None:
    of = federations.federation(codec=TWO_BITS, rounds={"rounds": 6, "cohort": 2})
    _, diary = trained(of)
    size = of.layout.travelling.stop
    last: set[str] = set()
    messages, size_of_message = set(), 0
    for line, checkpoint in zip(diary.lines, diary.checkpoints, strict=True):
        have = len(last & set(line["sites"]))
        assert checkpoint.held is not None
        assert checkpoint.held.message is not None
        due = 0 if line["round"] == 1 else have * size_of_message + (2 - have) * 4 * size
        assert line["bytes_down"] == due
        last, size_of_message = set(line["sites"]), len(checkpoint.held.message)
        messages.add(have)
    assert {1, 2} <= messages, "some site has skipped a round, and some has not"
    assert size_of_message < size + HEADER


def test_weights_that_only_the_coordinator_has_are_sent_and_counted(tmp_path: Path) -> None:
    plain = federations.federation(rounds={"rounds": 1})
    found, diary = trained(plain)
    assert diary.lines[0]["bytes_down"] == 0
    path = RunStore(tmp_path).save_model(plain.layout.state_dict(found.vector))
    weights = {"weights": str(path), "sha256": sha256(path.read_bytes()).hexdigest()}
    of = federations.federation(rounds={"rounds": 1}, model=weights)
    _, diary = trained(of)
    assert diary.lines[0]["bytes_down"] == 3 * 4 * of.layout.travelling.stop


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    of = federations.federation(codec=TWO_BITS, rounds={"rounds": 4, "cohort": 2})
    whole, diary = trained(of)
    store, rest = RunStore(tmp_path), federations.Diary()
    store.save_checkpoint(diary.checkpoints[1])
    engine = InProcessEngine(of)
    try:
        start = store.load_checkpoint()
        found = run(Session(of), engine, federations.overall(of), [rest], start)
    finally:
        engine.close()
    assert torch.equal(found.vector, whole.vector)
    assert torch.equal(found.checkpoint.vector, whole.checkpoint.vector)
    assert site_services.figures(rest) == site_services.figures(diary)[2:]


# -- over a line -----------------------------------------------------------------------------------


@dataclass
class Line:
    """A link that counts what goes down, and alters the `damaged` message to the site north."""

    link: Link
    damaged: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @property
    def sites(self) -> list[str]:
        return list(self.link.sites)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        if kind == "piece":
            name = header["name"]
            self.sent[name] = self.sent.get(name, 0) + len(body)
            if name == "difference" and site == "north" and self.damaged:
                header, body = self._damage(dict(header), body)
            elif name == "vector" and self.other_model:
                body = self.other_model
        answer = self.link.ask(site, kind, header, body, timeout)
        if kind in ("piece", "train", "measure"):
            self.said.append(str(answer[0]))
        return answer

    def _damage(self, header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        damage, self.damaged = self.damaged, ""
        if damage == "altered":
            return header, body[:-1] + bytes([body[-1] ^ 1])
        if damage == "forged length":
            return {**header, "total": 1 << 40}, body
        if damage == "cut off":
            return {**header, "total": header["total"] - 1}, body[:-1]
        return header, self.other  # of another model, and whole

    other: bytes = b""
    other_model: bytes = b""  # that comes in the place of a whole one


@pytest.mark.usefixtures("vectors_apart")
def test_a_whole_model_that_is_not_the_one_named_is_refused(
    places: Places, site_images: Path
) -> None:
    rounds = {"rounds": 2, "evaluate_every": 2, "quorum": 2}
    program = site_services.program(site_images, codec=TWO_BITS, rounds=rounds)
    federation, link = places.meet(program)
    held = federation.initial[federation.layout.travelling]
    line = Line(link, "altered", other_model=bytes(messages.pack([held + 1])))
    diary = federations.Diary()
    site_services.learn(federation, line, diary)
    assert diary.lines[0]["sites"] == ["north", "south", "west"]
    assert diary.lines[1]["sites"] == ["south", "west"]
    assert "not the one that was named" in diary.lines[1]["rejected"]["north"]


@pytest.mark.usefixtures("vectors_apart")
def test_what_is_counted_is_what_crosses_the_line(places: Places, site_images: Path) -> None:
    program = site_services.program(site_images, codec=TWO_BITS, rounds={"rounds": 3})
    federation, link = places.meet(program)
    diary, line = federations.Diary(), Line(link)
    site_services.learn(federation, line, diary)
    assert line.sent.keys() == {"difference"}, "the first model is built at the sites"
    message = diary.checkpoints[-1].held.message  # type: ignore[union-attr]
    # The last model is measured by the three sites, and no round trains from it.
    assert line.sent["difference"] == diary.checkpoints[-1].bytes_down + 3 * len(message)


@pytest.mark.usefixtures("vectors_apart")
@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ("altered", "missing"),
        ("cut off", "missing"),
        ("forged length", "does not fit"),
        ("forged", "missing"),
    ],
)
def test_a_site_uses_no_message_but_the_right_one(
    places: Places, site_images: Path, damaged: str, said: str
) -> None:
    """It refuses what was damaged, and does not train from what was forged: it asks for all of the
    model, and the run ends with the same bits. The bytes that this takes are counted."""
    # A piece that claims too much is refused before anything of it is kept, and the site is asked
    # again; everything else costs no second attempt.
    quorum = {} if damaged == "forged length" else {"quorum": 2}
    program = site_services.program(
        site_images, codec=TWO_BITS, rounds={"rounds": 2, "evaluate_every": 2, **quorum}
    )
    federation, link = places.meet(program)
    expected, sound = trained(federations.federate(program))
    diary, line = federations.Diary(), Line(link, damaged)
    message = sound.checkpoints[0].held.message  # type: ignore[union-attr]
    codec = difference(CODECS["two bits"], federation.layout.shared.stop, len(expected.travelling))
    held = federation.initial[federation.layout.travelling]
    line.other = bytes(codec.encode(held, held + 1, 3).numpy())
    assert len(line.other) == len(message)
    found = site_services.learn(federation, line, diary)
    assert any(said in one for one in line.said)
    assert digest_of(found.vector) == digest_of(expected.vector)
    size = 4 * federation.layout.travelling.stop
    assert diary.lines[1]["bytes_down"] == 2 * len(message) + size
