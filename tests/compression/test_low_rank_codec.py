"""Low rank: matrices of that rank come back exactly, and feedback sends the rest of others."""

from __future__ import annotations

from typing import Any

import federations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.client.release import SENT, UNSENT
from fedsight.client.step import Client
from fedsight.compression.pipeline import HEADER, Pipeline
from fedsight.compression.settings import Codecs
from fedsight.core.layout import Entry, Kind, Layout
from fedsight.core.types import Order
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

SHAPES: list[tuple[int, ...]] = [(3,), (20, 30), (12, 4, 3, 3), (5,), (2, 3)]


def layout_of(shapes: list[tuple[int, ...]]) -> Layout:
    entries: list[Entry] = []
    for number, shape in enumerate(shapes):
        start = entries[-1].stop if entries else 0
        entries.append(Entry(str(number), shape, Kind.SHARED, start))
    return Layout(tuple(entries))


def pipeline(*steps: Any, shapes: list[tuple[int, ...]] = SHAPES) -> Pipeline:
    found = Codecs.model_validate({"up": {"steps": list(steps)}}, strict=False).up.pipeline
    assert found is not None
    return found.fitted(layout_of(shapes))


def rank(of: int) -> dict[str, Any]:
    return {"name": "low-rank", "rank": of}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(codec: Pipeline, values: Tensor, key: int = 0, last: Tensor | None = None) -> float:
    found = codec.decode(codec.encode(values, key, last), len(values)).double()
    return float((found - values).norm() / values.double().norm())


@given(
    rows=st.integers(8, 40),
    columns=st.integers(8, 40),
    of=st.integers(1, 3),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    key=st.integers(0, 2**63 - 1),
)
def test_a_matrix_of_that_rank_comes_back(
    rows: int, columns: int, of: int, size: float, key: int
) -> None:
    codec = pipeline(rank(of), shapes=[(rows, columns)])
    matrix = size * (drawn(rows, of) @ drawn(of, columns, seed=1))
    sent = codec.encode(matrix.view(-1), key)
    assert len(sent) == codec.bytes(rows * columns) == HEADER + 4 * of * (rows + columns)
    assert error(codec, matrix.view(-1), key) < 1e-4


def test_small_layers_and_biases_are_sent_as_they_are() -> None:
    codec, values = pipeline(rank(2)), drawn(3 + 600 + 432 + 5 + 6)
    found = codec.decode(codec.encode(values, 1), len(values))
    assert codec.bytes(len(values)) == HEADER + 4 * (14 + 2 * (20 + 30) + 2 * (12 + 36))
    for part in (slice(0, 3), slice(1035, 1046)):
        assert torch.equal(found[part], values[part])
    assert not torch.equal(found[3:603], values[3:603])
    # A vector may end before the layout does: here it has the first matrix only.
    assert codec.bytes(3 + 600 + 9) == HEADER + 4 * (3 + 2 * (20 + 30) + 9)


def test_what_it_decodes_is_on_the_span_of_what_it_sends() -> None:
    """The error is orthogonal to what was sent (Vogels et al. 2019, section 3)."""
    codec, values = pipeline(rank(2), shapes=[(30, 40)]), drawn(1200)
    found = codec.decode(codec.encode(values, 1), 1200)
    assert float(((values - found) * found).sum()) == pytest.approx(0, abs=1e-3)
    assert torch.linalg.matrix_rank(found.view(30, 40), rtol=1e-4) == 2


def test_a_convolution_is_a_matrix_of_its_output_channels() -> None:
    layout = Layout((Entry("conv", (12, 4, 3, 3), Kind.SHARED, 0),))
    vector = torch.zeros(432)
    layout.entries[0].view(vector).copy_((drawn(12, 1) @ drawn(1, 36, seed=1)).view(12, 4, 3, 3))
    assert error(pipeline(rank(1), shapes=[(12, 4, 3, 3)]), vector) < 1e-4


def test_a_warm_start_finds_the_largest_directions() -> None:
    """Of a matrix that stands still it is the power iteration, whose limit is the best rank."""
    left, _ = torch.linalg.qr(drawn(40, 40))
    right, _ = torch.linalg.qr(drawn(50, 40, seed=1))
    sizes = 0.8 ** torch.arange(40.0)
    values = (left * sizes @ right.T).reshape(-1)
    codec, last = pipeline(rank(3), shapes=[(40, 50)]), None
    best = float(sizes[3:].norm() / sizes.norm())
    assert error(codec, values) > 1.05 * best
    for key in range(30):
        last = codec.encode(values, key, last)
    assert error(codec, values, 30, last) == pytest.approx(best, rel=1e-3)


def test_a_start_of_zeros_is_drawn_again() -> None:
    codec = pipeline(rank(2), shapes=[(20, 30)])
    nothing = codec.encode(torch.zeros(600), 0)
    assert not codec.decode(nothing, 600).any()
    low = (drawn(20, 2) @ drawn(2, 30, seed=1)).reshape(-1)
    assert error(codec, low, 1, nothing) < 1e-4


@pytest.mark.parametrize(
    "after", [[], ["float16"], [{"name": "quantise", "bits": 8}], [{"name": "eden", "bits": 3}]]
)
def test_feedback_leaves_out_no_more_and_more(after: list[Any]) -> None:
    codec = pipeline(rank(2), *after)
    values = drawn(1046)
    left, last, total = torch.zeros(1046), None, torch.zeros(1046)
    for key in range(200):
        due = values + left
        last = codec.encode(due, key, last)
        left = due - codec.decode(last, 1046)
        total += codec.decode(last, 1046)
    assert float(left.norm()) < 60 * float(values.norm())
    assert float((total / 200 - values).norm()) < 0.3 * float(values.norm())


@pytest.mark.parametrize(
    ("codec", "where", "cause"),
    [
        ({"up": {"steps": ["rotate", "low-rank"]}}, "codec.up.steps.1", "there are none"),
        ({"up": {"steps": ["low-rank", "sign"], "feedback": True}}, "codec.up.steps.1", "grow"),
        ({"down": {"steps": ["low-rank", "eden"]}}, "codec.down.steps.1", "grow"),
    ],
)
def test_what_does_not_go_with_it_is_refused(codec: dict[str, Any], where: str, cause: str) -> None:
    (problem,) = Codecs.model_validate(codec, strict=False).check()
    assert problem.where == where
    assert cause in problem.cause


def test_masks_refuse_it() -> None:
    program = federations.program(codec={"up": {"steps": ["low-rank"]}}, secure={"name": "secagg"})
    assert "codec.up.steps" in [problem.where for problem in program.check()]


@pytest.fixture(scope="module")
def low() -> Federation:
    steps = [{"name": "low-rank", "rank": 1}, "float16"]
    both = {"up": {"steps": steps, "feedback": True}, "down": {"steps": steps}}
    return federations.federation(codec=both, rounds={"rounds": 3})


def test_a_run_sends_less_and_engines_agree(low: Federation) -> None:
    diary = federations.Diary()
    one = federations.learn(low, diary=diary)
    engine = WorkerEngine(low, Speed(workers=2))
    try:
        two = federations.learn(low, engine)
    finally:
        engine.close()
    assert federations.sha(one.vector) == federations.sha(two.vector)
    whole = 4 * low.layout.travelling.stop
    assert diary.lines[1]["bytes_up"] == 3 * low.parts["delta"].bytes < 3 * whole / 4
    assert diary.lines[1]["bytes_down"] < 3 * whole / 4


def test_a_site_remembers_what_it_left_out_and_where_it_begins(low: Federation) -> None:
    client, order = Client(low), Order(1, low.initial[low.layout.travelling])
    first = client.step(order, 0, {})
    assert torch.equal(first.memory[SENT + "delta"], first.payload["delta"])
    again = client.step(order, 0, first.memory)
    cold = client.step(order, 0, {UNSENT + "delta": first.memory[UNSENT + "delta"]})
    assert not torch.equal(again.payload["delta"], cold.payload["delta"])
    blank = client.blank(order, 0, first.memory)
    assert blank.payload["delta"].shape == first.payload["delta"].shape
