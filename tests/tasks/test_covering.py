"""What tasks give to be covered: levels are nested, and what is counted is what answers show."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsight.core.types import Batch
from fedsight.tasks.base import Task
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import NEVER, STEPS, UNIT, Tally, limit, lost, place
from fedsight.tasks.multilabel import MultiLabel
from fedsight.tasks.ordinal import Ordinal
from fedsight.tasks.segmentation import IGNORED, Segmentation

NAMES = ("background", "disc", "square", "ring")
LEVELS = (0, 1, 700, 2048, 3000, STEPS - 1)


class Given(nn.Module):
    """Answers with what it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def drawn(kind: str, count: int = 12) -> tuple[Task, Batch]:
    draws = torch.Generator().manual_seed(0)
    if kind == "segment":
        y = torch.randint(0, 4, (count, 5, 4), generator=draws).to(torch.uint8)
        y[:, 0], y[0] = IGNORED, 0
        return Segmentation(), Batch(2 * torch.randn(count, 4, 5, 4, generator=draws), y)
    x = 2 * torch.randn(count, 4, generator=draws)
    if kind == "ordinal":
        return Ordinal(), Batch(x, torch.randint(0, 4, (count,), generator=draws))
    y = (torch.rand(count, 4, generator=draws) < 0.4).float()
    y[0] = 0
    return MultiLabel(), Batch(x, y)


def covering_of(task: Task) -> Covering:
    assert task.covering is not None
    return task.covering


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, STEPS - 1))
def test_an_item_is_kept_exactly_where_its_probability_reaches_the_limit(
    values: list[float], level: int
) -> None:
    places = place(torch.tensor(values, dtype=torch.float64))
    assert bool((places >= 0).all())
    assert bool((places < STEPS).all())
    for value, at in zip(values, places.tolist(), strict=True):
        if not math.isclose(value, limit(level), rel_tol=1e-6):
            assert (at >= level) == (value >= limit(level) or level == 0)
    losses = lost(places)
    assert int(losses[0]) == 0  # the largest answer misses nothing
    assert bool((losses.diff() >= 0).all())
    missed = sum(at < level for at in places.tolist()) / len(values)
    assert missed <= int(losses[level]) / UNIT < missed + 1 / UNIT


def test_what_no_level_keeps_is_lost_at_all() -> None:
    losses = lost(torch.tensor([NEVER, 5]))
    assert losses[[0, 5, 6]].tolist() == [UNIT // 2, UNIT // 2, UNIT]


@pytest.mark.parametrize("kind", ["segment", "multilabel", "ordinal"])
def test_what_is_counted_is_what_answers_miss(kind: str) -> None:
    task, batch = drawn(kind)
    covering = covering_of(task)
    tally = covering.counted("answer", task, Given(), batch)
    for level in LEVELS:
        levels = {"answer": torch.full((4,), level)}
        shown = covering.answers(task, Given(), batch.x, NAMES, levels)
        misses, sizes = [], []
        for answer, truth in zip(shown, batch.y, strict=True):
            if kind == "segment":
                mask = answer.answer.mask
                assert mask is not None
                there = (truth != IGNORED) & (truth > 0)
                if not bool(there.any()):
                    continue
                kept = mask.gather(0, truth.long().clamp(max=3)[None])[0][there]
                sizes.append(float(mask.any(0)[truth != IGNORED].double().mean()))
            else:
                has = {NAMES[int(truth)]} if kind == "ordinal" else set()
                if kind == "multilabel":
                    has = {NAMES[at] for at in torch.nonzero(truth).flatten().tolist()}
                if not has:
                    continue
                kept = torch.tensor([name in answer.classes for name in has])
                sizes.append(float(len(answer.classes)))
            misses.append(1 - float(kept.double().mean()))
        assert len(misses) == int(tally.units[0]) == tally.sized
        assert int(tally.losses[0, level]) / UNIT == pytest.approx(sum(misses), abs=1e-4)
        assert int(tally.sizes[level]) / UNIT == pytest.approx(sum(sizes), abs=1e-4)


@pytest.mark.parametrize("kind", ["segment", "multilabel", "ordinal"])
def test_who_counts_which_images_makes_no_difference(kind: str) -> None:
    task, batch = drawn(kind)
    covering, groups = covering_of(task), 5
    whole = covering.counted("answer", task, Given(), batch)
    parts = Tally.nothing(groups)
    for at in (slice(0, 1), slice(1, 7), slice(7, 12)):
        part = covering.counted("answer", task, Given(), Batch(batch.x[at], batch.y[at]))
        parts = parts + part
    for name in ("units", "losses", "sizes"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_a_class_is_counted_where_it_is_shown() -> None:
    task, batch = drawn("segment")
    tally = covering_of(task).counted("answer", task, Given(), batch)
    shows = [(batch.y == label).flatten(1).any(1).sum() for label in range(1, 4)]
    assert tally.units[2:].tolist() == [int(one) for one in shows]
    assert int(tally.units[1]) == 0  # nobody looks for background


def test_intervals_of_grades_have_no_gaps_and_hold_the_median() -> None:
    task, batch = drawn("ordinal", 200)
    for level in LEVELS:
        levels = {"answer": torch.full((4,), level)}
        for one in covering_of(task).answers(task, Given(), batch.x, NAMES, levels):
            places = [NAMES.index(name) for name in one.classes]
            assert places == list(range(places[0], places[-1] + 1))
            assert one.answer.label in one.classes


def test_a_mask_does_not_mark_background_and_tells_its_share() -> None:
    task, batch = drawn("segment", 2)
    levels = {"answer": torch.zeros(4, dtype=torch.int64)}
    for one in covering_of(task).answers(task, Given(), batch.x, NAMES, levels):
        assert one.answer.details["marked"] == {"disc": 1.0, "square": 1.0, "ring": 1.0}
        assert one.answer.mask is not None
        assert not bool(one.answer.mask[0].any())


def test_grades_with_levels_of_their_own_are_still_an_interval() -> None:
    """A set with a gap is none, whatever the levels of the grades between."""
    task = Ordinal()
    x = torch.tensor([[2.0, 1.0, 1.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    levels = {"answer": torch.tensor([-1, STEPS - 1, STEPS - 1, -1])}
    for one in covering_of(task).answers(task, Given(), x, NAMES, levels):
        assert one.classes == NAMES


@pytest.mark.parametrize("kind", ["segment", "multilabel"])
def test_a_threshold_is_told_where_all_classes_share_it(kind: str) -> None:
    covering = covering_of(drawn(kind)[0])
    same = covering.told({"answer": torch.full((4,), 700)})
    assert same == {"threshold": limit(700)}
    assert covering.told({"answer": torch.tensor([-1, 700, 900, 800])}) == {}
