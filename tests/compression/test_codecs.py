"""Codecs: what is sent is as long as the part's spec says, and decodes to what it promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.aggregation.mean import Mean
from fedsight.client.release import UNSENT
from fedsight.client.step import Client
from fedsight.compression.base import codecs
from fedsight.compression.bits import (
    pack,
    pack_positions,
    packed_bytes,
    positions_bytes,
    unpack,
    unpack_positions,
)
from fedsight.compression.eden import _levels, edges, nearest
from fedsight.compression.hadamard import rotate, rotate_back
from fedsight.compression.pipeline import HEADER, Pipeline
from fedsight.compression.settings import Codecs
from fedsight.compression.stream import Stream
from fedsight.core.errors import ConfigError, SiteError
from fedsight.core.types import Order, PartSpec
from fedsight.engines.remote import messages
from fedsight.engines.workers import WorkerEngine
from fedsight.program.program import Speed

VALUES = st.lists(st.floats(-60_000, 60_000, width=32), max_size=200)
PIPELINES: dict[str, list[Any]] = {
    **{name: [name] for name in codecs.names()},
    "1 bit": [{"name": "quantise", "bits": 1, "block": 8}],
    "11 bits": [{"name": "quantise", "bits": 11, "block": 16}],
    "rotated": [{"name": "rotate", "block": 64}, {"name": "quantise", "bits": 4}],
    "two bits": [{"name": "eden", "bits": 2, "block": 64}],
    "least": [{"name": "eden", "scale": "least"}],
    "few, short": [{"name": "top-k", "share": 0.1}, {"name": "quantise", "bits": 4}],
    "sparse": [
        {"name": "random-k", "share": 0.5},
        {"name": "top-k", "share": 0.5},
        "bfloat16",
    ],
}


def pipeline(steps: Sequence[Any]) -> Pipeline:
    """As a config would make it."""
    found = Codecs.model_validate({"up": {"steps": list(steps)}}, strict=False).up.pipeline
    assert found is not None
    return found


def error(steps: Sequence[Any], values: Tensor, keys: range) -> tuple[float, Tensor]:
    """The squared error over the squared norm, in the mean over keys, and the mean of what is
    decoded."""
    codec, squares, total = pipeline(steps), 0.0, torch.zeros(len(values), dtype=torch.float64)
    for key in keys:
        found = codec.decode(codec.encode(values, key), len(values)).double()
        squares += float((found - values.double()).square().sum())
        total += found
    return squares / len(keys) / float(values.double().square().sum()), total / len(keys)


@pytest.mark.parametrize("name", PIPELINES)
@given(values=VALUES, key=st.integers(0, 2**63 - 1))
def test_what_is_sent_has_the_length_that_is_due_and_is_read_alike(
    name: str, values: list[float], key: int
) -> None:
    spec = PartSpec((len(values),), codec=pipeline(PIPELINES[name]))
    sent = spec.encode(torch.tensor(values), key)
    assert spec.fits(sent)
    assert len(messages.pack([sent])) == len(sent) <= spec.bytes
    assert spec.varies or len(sent) == spec.bytes
    found = spec.decode(sent)
    assert found.shape == (len(values),)
    assert torch.equal(found, spec.decode(sent))
    assert torch.equal(sent, spec.encode(torch.tensor(values), key))


@pytest.mark.parametrize("name", PIPELINES)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_altered_or_shortened_message_is_decoded(name: str, place: int, bit: int) -> None:
    codec, values = pipeline(PIPELINES[name]), torch.linspace(-1, 2, 75)
    sent = codec.encode(values, 5)
    for bad in (sent[:-1], torch.cat([sent, sent[:1]]), sent.clone()):
        if len(bad) == len(sent):
            bad[place % len(bad)] ^= 1 << bit
        with pytest.raises(ValueError, match=r"bytes, not|version|checksum"):
            codec.decode(bad, 75)


@pytest.mark.parametrize("name", PIPELINES)
@given(data=st.binary(min_size=400, max_size=400), key=st.integers(0, 2**63 - 1))
def test_any_bytes_of_the_right_length_are_read_or_refused(
    name: str, data: bytes, key: int
) -> None:
    codec = pipeline(PIPELINES[name])
    for number, step in enumerate(codec.steps):
        count = step.bytes(75)
        content = torch.from_numpy(np.frombuffer(data[:count], np.uint8).copy())
        try:
            found = step.decode(content, torch.ones(step.left(75)), 75, Stream(key, number))
        except ValueError:
            continue
        assert found.shape == (75,)


@given(values=VALUES)
def test_float16_is_what_numpy_rounds_to(values: list[float]) -> None:
    codec, given_values = pipeline(["float16"]), np.asarray(values, np.float32)
    found = codec.decode(codec.encode(torch.from_numpy(given_values), 0), len(values))
    assert np.array_equal(found.numpy(), given_values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("bits", range(1, 17))
@given(numbers=st.lists(st.integers(0, 2**16 - 1), max_size=50))
def test_numbers_of_few_bits_are_packed_and_come_back(bits: int, numbers: list[int]) -> None:
    values = np.array(numbers, np.uint16) & np.uint16(2**bits - 1)
    data = pack(values, bits)
    assert len(data) == packed_bytes(len(values), bits) <= bits * (len(values) + 7) // 8
    assert np.array_equal(unpack(data, len(values), bits), values)


@given(
    st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1))))
)
def test_positions_come_back_and_take_two_bits_more_than_they_must(
    drawn: tuple[int, set[int]],
) -> None:
    below, chosen = drawn
    positions = np.array(sorted(chosen), np.int64)
    data = pack_positions(positions, below)
    assert len(data) == positions_bytes(len(positions), below)
    assert np.array_equal(unpack_positions(data, len(positions), below), positions)
    if chosen:
        bits = math.log2(max(below / len(chosen), 1)) + 2
        assert 8 * len(data) <= len(chosen) * bits + 8 * (2 + math.log2(below) + 1)


@pytest.mark.parametrize("length", [1, 64, 100, 4096, 5000])
def test_a_rotation_keeps_lengths_and_is_undone(length: int) -> None:
    values = torch.randn(length, generator=torch.Generator().manual_seed(1))
    turned = rotate(values, 4096, Stream(3, 0))
    assert torch.linalg.vector_norm(turned) == pytest.approx(float(values.norm()), rel=1e-5)
    assert torch.allclose(rotate_back(turned, length, 4096, Stream(3, 0)), values, atol=1e-5)


def test_a_rotation_spreads_one_value_over_its_block() -> None:
    values = torch.zeros(8192)
    values[17] = 64.0
    turned = rotate(values, 4096, Stream(3, 0))
    assert torch.equal(turned[:4096].abs(), torch.ones(4096))
    assert not turned[4096:].any()


@pytest.mark.parametrize("bits", range(1, 7))
def test_the_levels_for_normal_values_are_the_known_ones(bits: int) -> None:
    """The distortions of Max 1960, table I."""
    levels = _levels(bits)
    grid = np.linspace(-8, 8, 400_001)
    near = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, grid)]
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    found = float(np.sum(density * (grid - near) ** 2) * (grid[1] - grid[0]))
    known = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499, 6: 0.0006442}
    assert found == pytest.approx(known[bits], rel=3e-3)


@pytest.mark.parametrize("bits", range(2, 7))
def test_the_nearest_level_is_that_of_bucketize(bits: int) -> None:
    drawn = 2 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    borders = torch.arange(-600, 600) / 100
    values = torch.cat([drawn, edges(bits), edges(bits).nextafter(torch.tensor(9.0)), borders])
    values = torch.cat([values, torch.tensor([1e30, -1e30, 0.0])])
    assert torch.equal(nearest(values, bits), torch.bucketize(values, edges(bits), out_int32=True))


def heavy(count: int) -> Tensor:
    """Values as those of an update are: most of them small."""
    draws = torch.Generator().manual_seed(2)
    return torch.randn(count, generator=draws) * torch.rand(count, generator=draws) ** 4


@pytest.mark.parametrize(
    ("steps", "theory"),
    [
        ({"name": "eden", "bits": 1, "scale": "unbiased"}, math.pi / 2 - 1),
        ({"name": "eden", "bits": 1, "scale": "least"}, 1 - 2 / math.pi),
        ({"name": "eden", "bits": 2, "scale": "unbiased"}, 1 / (1 - 0.1175) - 1),
        ({"name": "eden", "bits": 4, "scale": "unbiased"}, 1 / (1 - 0.009497) - 1),
    ],
)
def test_one_bit_and_more_after_a_rotation_have_the_error_of_theory(
    steps: dict[str, Any], theory: float
) -> None:
    """Vargaftik et al. 2021, theorems 1 and 4; 2022, section 3."""
    found, _ = error([steps], heavy(1 << 16), range(4))
    assert found == pytest.approx(theory, rel=0.01)


UNBIASED: list[list[Any]] = [
    [{"name": "quantise", "bits": 2}],
    [{"name": "rotate", "block": 64}, {"name": "quantise", "bits": 2}],
    [{"name": "eden", "bits": 1}],
    [{"name": "random-k", "share": 0.25}],
]


@pytest.mark.parametrize("steps", UNBIASED)
def test_what_calls_itself_unbiased_is_right_in_the_mean(steps: list[Any]) -> None:
    """The error of the mean of k messages is that of one, divided by k."""
    assert pipeline(steps).unbiased
    values, keys = heavy(4096), range(200)
    one, mean = error(steps, values, keys)
    left = float((mean - values.double()).square().sum() / values.double().square().sum())
    assert left == pytest.approx(one / len(keys), rel=0.25)


@pytest.mark.parametrize("steps", [["sign"], [{"name": "top-k", "share": 0.1}]])
def test_what_is_biased_says_so(steps: list[Any]) -> None:
    assert not pipeline(steps).unbiased
    one, mean = error(steps, heavy(4096), range(5))
    assert float((mean - heavy(4096).double()).square().sum()) > 0
    assert one > 0.01


def test_top_k_sends_the_largest() -> None:
    values = torch.tensor([0.1, -5.0, 3.0, 3.0, -3.0, 0.0])
    codec = pipeline([{"name": "top-k", "share": 0.5}])
    found = codec.decode(codec.encode(values, 0), 6)
    assert torch.equal(found, torch.tensor([0.0, -5.0, 3.0, 3.0, 0.0, 0.0]))


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        pipeline(PIPELINES[name]).encode(torch.tensor([1.0, bad]), 0)


def test_a_value_too_large_for_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="above 65,504"):
        pipeline(["float16"]).encode(torch.tensor([1.0, 70_000.0]), 0)


def test_parts_cross_a_line_as_they_were_encoded() -> None:
    spec = PartSpec((5,), codec=pipeline(["float16"]))
    sent = spec.encode(torch.arange(5.0), 0)
    data = bytearray(messages.pack([sent]))
    assert torch.equal(messages.unpack_parts(data, {"delta": spec})["delta"], sent)
    with pytest.raises(ValueError, match=f"{HEADER + 9} bytes, not {HEADER + 10}"):
        messages.unpack_parts(data[:-1], {"delta": spec})


@pytest.mark.parametrize(
    "sent",
    [
        torch.zeros(HEADER + 9, dtype=torch.uint8),
        torch.zeros(HEADER + 10, dtype=torch.uint8),
        torch.zeros(5),
        "text",
        torch.zeros(2, 5),
    ],
)
def test_a_part_of_another_form_is_refused_and_nothing_is_added(sent: Any) -> None:
    spec = PartSpec((5,), codec=pipeline(["float16"]))
    total = Mean().aggregator({"delta": spec}, 2)
    with pytest.raises(SiteError, match="site 'ward'"):
        total.add({"delta": sent}, 1, "ward")
    assert total.count == 0
    assert not total.tensors["delta"].any()


def test_a_run_with_float16_sends_half_and_learns_as_much() -> None:
    diary, half = federations.Diary(), federations.Diary()
    whole = federations.learn(federations.federation(), diary=diary)
    of = federations.federation(codec={"up": {"steps": ["float16"]}})
    halved = federations.learn(of, diary=half)
    framing = 2 * 3 * HEADER  # of three sites, twice
    assert [2 * line["bytes_up"] - framing for line in half.lines] == [
        line["bytes_up"] for line in diary.lines
    ]
    assert [line["bytes_down"] for line in half.lines] == [x["bytes_down"] for x in diary.lines]
    assert torch.allclose(halved.vector, whole.vector, atol=1e-3)
    assert not torch.equal(halved.vector, whole.vector)
    engine = WorkerEngine(of, Speed(workers=2))
    try:
        assert federations.sha(federations.learn(of, engine).vector) == federations.sha(
            halved.vector
        )
    finally:
        engine.close()


def test_what_an_encoding_left_out_is_sent_later() -> None:
    """The sum of all that was sent and of what is left is the sum of all updates."""
    steps = [{"name": "top-k", "share": 0.2}]
    of = federations.federation(codec={"up": {"steps": steps, "feedback": True}})
    client, memory = Client(of), {}
    plain = Client(federations.federation())
    spec, sent, due = of.parts["delta"], 0.0, 0.0
    for round in range(1, 5):
        order = Order(round, of.initial[of.layout.travelling])
        reply = client.step(order, 0, memory)
        memory = reply.memory
        sent = sent + spec.decode(reply.payload["delta"]).double()
        due = due + plain.step(order, 0, {}).payload["delta"].double()
    assert torch.allclose(sent + memory[UNSENT + "delta"].double(), due, atol=1e-6)
    assert memory[UNSENT + "delta"].any()


@pytest.mark.parametrize(
    ("up", "where", "cause"),
    [
        ({"steps": ["sign", "float16"]}, "codec.up.steps.1", "leaves no values"),
        ({"feedback": True}, "codec.up.feedback", "nothing is left out"),
        ({"steps": ["random-k"], "feedback": True}, "codec.up.steps.0", "would grow"),
        (
            {"steps": ["rotate", {"name": "quantise", "bits": 2}], "feedback": True},
            "codec.up.steps.1",
            "would grow",
        ),
    ],
)
def test_codecs_that_do_not_go_together_are_refused(
    up: dict[str, Any], where: str, cause: str
) -> None:
    (problem,) = Codecs.model_validate({"up": up}, strict=False).check()
    assert problem.where == where
    assert cause in problem.cause


@pytest.mark.parametrize(
    ("steps", "where"),
    [
        (["zip"], "codec.up.steps.0"),
        ([{"name": "quantise", "bits": 17}], "codec.up.steps.0.bits"),
        ([{"name": "rotate", "block": 100}], "codec.up.steps.0.block"),
        ([{"name": "sign", "bits": 2}], "codec.up.steps.0.bits"),
    ],
)
def test_a_wrong_codec_is_refused_with_its_place(steps: list[Any], where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        federations.federation(codec={"up": {"steps": steps}})
    assert where in [problem.where for problem in refused.value.problems]


@pytest.mark.parametrize("name", PIPELINES)
def test_what_may_have_feedback_leaves_out_no_more_and_more(name: str) -> None:
    """Also for a vector of few values, which suits most codecs least."""
    codec = pipeline(PIPELINES[name])
    if not all(step.contracts for step in codec.steps):
        return
    few = torch.zeros(256)
    few[:3] = torch.tensor([1.0, -1.0, 0.5])
    for values in (heavy(256), few):
        left = torch.zeros(256)
        for key in range(150):
            due = values + left
            left = due - codec.decode(codec.encode(due, key), 256)
        assert float(left.norm()) < 60 * float(values.norm())


def test_baselines_are_trained_without_a_codec() -> None:
    """A site alone sends nothing, so nothing is left out of what it learns."""
    plain = federations.federation().program.baseline()
    coded = federations.federation(codec={"up": {"steps": ["sign"], "feedback": True}}).program
    assert coded.baseline().codec == plain.codec
    assert coded.baseline().fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"algorithm": {"name": "ncm"}, "rounds": {"rounds": 1}}, "codec.up.steps"),
        ({"algorithm": {"name": "qfedavg"}, "aggregation": {"name": "median"}}, "aggregation.name"),
    ],
)
def test_what_has_no_meaning_is_refused(sections: dict[str, Any], where: str) -> None:
    program = federations.program(codec={"up": {"steps": ["float16"]}}, **sections)
    assert where in [problem.where for problem in program.check()]
