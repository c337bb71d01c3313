"""Boxes find as many objects, and hold as many of those, as was asked for."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from fedsight.core.types import Batch
from fedsight.data.detection.boxes import Row, crowd, difficult, pack
from fedsight.evaluation.trust.risk import Losses, Risk, level
from fedsight.models.detector import Detector
from fedsight.tasks.covering.levels import STEPS, UNIT, Tally, place
from fedsight.tasks.covering.objects import SCORES, WIDTHS, Objects, widened
from fedsight.tasks.detection.task import Detection

TASK, OBJECTS, NAMES = Detection(), Objects(), ("cat", "dog")
POPULATION = 300


class Given(Detector):
    """Finds the rows that it is asked."""

    def find(self, x: Tensor) -> Tensor:
        return x

    def loss(self, x: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
        return x.sum()


def counted(part: str, rows: list[tuple[float, ...]], truth: list[Row]) -> Tally:
    found = torch.tensor([*rows, (0.0,) * 6])[None]
    return OBJECTS.counted(part, TASK, Given(), Batch(found, pack([truth], [[]])))


BOX = (10.0, 10.0, 30.0, 50.0)


def test_an_object_is_found_from_the_score_of_its_box_down() -> None:
    rows = [(0.0, 0.9, 100.0, 100.0, 120.0, 120.0), (0.0, 0.4, *BOX)]
    losses = counted("answer", rows, [(0.0, *BOX)]).losses[0]
    at = int(place(torch.tensor(0.4)))
    assert losses[[0, at, at + 1]].tolist() == [0, 0, UNIT]


def test_one_box_finds_one_object_of_its_class_and_a_weaker_one_takes_none_away() -> None:
    twice: list[Row] = [(0.0, *BOX), (0.0, 11.0, 10.0, 31.0, 50.0)]
    for rows, missed in (
        ([(0.0, 0.9, *BOX)], 1),
        ([(0.0, 0.9, *BOX), (0.0, 0.2, *BOX)], 0),
        ([(1.0, 0.9, *BOX), (0.0, 0.2, *BOX)], 1),
        ([], 2),
    ):
        tally = counted("answer", rows, twice)
        assert int(tally.losses[0, 0]) == missed * UNIT // 2
        assert bool((tally.losses.diff() >= 0).all())


def test_what_is_not_counted_is_not_missed() -> None:
    assert int(counted("answer", [], [difficult((0.0, *BOX)), crowd((1.0, *BOX))]).units[0]) == 0
    assert int(counted("margins", [], [(0.0, *BOX)]).units.sum()) == 0


@pytest.mark.parametrize("moved", [(0.0, 0.0, 0.0, 0.0), (-4.0, 0.0, 0.0, 0.0), (0, 0, 2.0, 6.0)])
def test_a_margin_holds_the_object_exactly(moved: tuple[float, ...]) -> None:
    truth = tuple(a + b for a, b in zip(BOX, moved, strict=True))
    tally = counted("margins", [(0.0, 0.5, *BOX)], [(0.0, *truth)])  # type: ignore[arg-type]
    group = int(place(torch.tensor(0.5))) * SCORES // STEPS
    assert tally.units.tolist() == [1] * (group + 1) + [0] * (SCORES - group - 1)
    held = tally.losses[group] == 0
    for at in range(WIDTHS + 1):
        outer = widened(torch.tensor([BOX]), 1 - at / WIDTHS, (200, 200))[0].tolist()
        inside = outer[0] <= truth[0] and outer[1] <= truth[1]
        inside = inside and outer[2] >= truth[2] and outer[3] >= truth[3]
        assert bool(held[at]) == inside


@cache
def population() -> tuple[Tensor, Tensor, Tensor]:
    """Of images with one to three objects: loss curves of the answer [images, STEPS], and of the
    margins [images, SCORES, WIDTHS + 1] with whether they count [images, SCORES]."""
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(POPULATION):
        rows, truth = [], []
        hard = float(torch.randn(1, generator=draws))
        for number in range(int(torch.randint(1, 4, (1,), generator=draws))):
            box = torch.tensor([60.0 * number, 10.0, 60.0 * number + 40, 40.0])
            truth.append((0.0, *box.tolist()))
            noise = torch.randn(4, generator=draws) * (2 + abs(hard))
            score = torch.sigmoid(torch.randn(1, generator=draws) + 2 - 1.5 * hard)
            rows.append((0.0, float(score), *(box + noise).tolist()))
        both = [counted(part, rows, truth) for part in OBJECTS.parts]  # type: ignore[arg-type]
        found.append((both[0].losses[0], both[1].losses, both[1].units))
    one, two, three = (torch.stack(each) for each in zip(*found, strict=True))
    return one, two, three


def drawn(held: int, coverage: float) -> tuple[Tensor, Tensor]:
    """The mean losses of new images, of answer and margins, for many draws of held-out ones."""
    answers, margins, counts = population()
    draws, found = torch.Generator().manual_seed(1), []
    for _ in range(800):
        order = torch.randperm(POPULATION, generator=draws)
        first, second, new = order[:held], order[held : 2 * held], order[2 * held :]
        parts = {
            "answer": Tally(torch.tensor([held]), answers[first].sum(0)[None], Tensor()),
            "margins": Tally(counts[second].sum(0), margins[second].sum(0), Tensor()),
        }
        kept = {name: Losses(one, {}) for name, one in parts.items()}
        at = Risk(OBJECTS, "mixture", kept).levels(coverage)
        group, width = OBJECTS.group("margins", at), int(at["margins"][0])
        there = counts[new, group] > 0
        found.append(
            (
                float(answers[new, int(at["answer"][0])].double().mean()) / UNIT,
                float(margins[new, group, width][there].double().mean()) / UNIT,
            )
        )
    both = torch.tensor(found)
    return both[:, 0], both[:, 1]


def shown(losses: Tensor) -> float:
    return float(losses.double().mean()) / UNIT


@pytest.mark.parametrize(("held", "coverage"), [(30, 0.75), (50, 0.8)])
def test_new_images_lose_no_more_objects_than_is_allowed(held: int, coverage: float) -> None:
    for losses in drawn(held, coverage):
        assert float(losses.mean()) <= 1 - coverage + 3 * float(losses.std()) / math.sqrt(800)
        assert float(losses.mean()) >= (1 - coverage) / 4


def test_without_the_correction_few_images_lose_too_many_objects() -> None:
    """The attack on the guarantee: held-out images lose what is allowed, and new ones more."""
    answers, draws = population()[0], torch.Generator().manual_seed(1)
    found = []
    for _ in range(1500):
        order = torch.randperm(POPULATION, generator=draws)
        held, new = order[:7], order[7:]
        sums = answers[held].sum(0)
        good = int((sums.double() <= 7 * 0.13 * UNIT).sum()) - 1
        # where boxes of any score miss too much there is no answer, and nothing is promised
        both = (level(7, sums, 0.87), None if good < 0 else good)
        found.append([0.0 if at is None else shown(answers[new, at]) for at in both])
    right, wrong = torch.tensor(found).T
    error = 3 * float(wrong.std()) / math.sqrt(1500)
    assert float(right.mean()) <= 0.13 + error
    assert float(wrong.mean()) > 0.13 + error


def test_answers_show_the_boxes_that_were_counted() -> None:
    rows = [(0.0, 0.9, *BOX), (1.0, 0.6, 11.0, 10.0, 30.0, 50.0), (0.0, 0.01, *BOX)]
    at = OBJECTS.rounded("answer", int(place(torch.tensor(0.5))))
    levels = {"answer": torch.tensor([at]), "margins": torch.tensor([WIDTHS - 8])}

    class Framed(Given):
        def find(self, x: Tensor) -> Tensor:
            return torch.tensor(rows)[None]

    (one,) = OBJECTS.answers(TASK, Framed(), torch.zeros(1, 1, 60, 40), NAMES, levels)
    boxes = one.answer.details["boxes"]
    assert [box["label"] for box in boxes] == ["cat", "dog"]
    assert [box["set"] for box in boxes] == [["cat", "dog"]] * 2
    assert boxes[0]["outer"] == pytest.approx([7.5, 5.0, 32.5, 55.0])
    assert one.classes == ("cat", "dog")
    assert len(one.answer.marks) == 4
