"""A threshold of likeness lets few pairs of new people pass, however few it was chosen on."""

from __future__ import annotations

from typing import Any

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.evaluation.trust.images import trust_images
from fedsight.evaluation.trust.risk import Losses, Risk, level
from fedsight.tasks.covering.levels import STEPS, UNIT, Tally
from fedsight.tasks.covering.pairs import Pairs, paired, places, threshold
from fedsight.tasks.faces.task import FaceRecognition


def crowd(count: int, draws: torch.Generator, images: int = 3) -> tuple[Tensor, Tensor]:
    """Unit vectors of people in all directions, whose images hardly differ; and who is who."""
    centres = torch.nn.functional.normalize(torch.randn(count, 1, 6, generator=draws), dim=-1)
    vectors = centres + 0.02 * torch.randn(count, images, 6, generator=draws)
    vectors = torch.nn.functional.normalize(vectors, dim=-1).flatten(0, 1)
    return vectors, torch.arange(count).repeat_interleave(images)


def passing(vectors: Tensor, people: Tensor, least: float) -> float:
    """The share of comparisons of two people that are accepted."""
    others = people[:, None] != people[None]
    return float((vectors @ vectors.T >= least)[others].double().mean())


@pytest.mark.parametrize(("people", "far"), [(18, 0.1), (26, 0.1), (8, 0.2)])
def test_two_new_people_pass_no_more_often_than_is_guaranteed(people: int, far: float) -> None:
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(250):
        tally = paired(*crowd(people, draws))
        assert int(tally.units[0]) == people // 2
        at = level(people // 2, tally.losses[0], 1 - far)
        assert at is not None
        found.append(passing(*crowd(40, draws), threshold(at)))
    shares = torch.tensor(found)
    assert float(shares.mean()) <= far + 3 * float(shares.std()) / len(found) ** 0.5
    assert float(shares.mean()) >= far / 4


def test_a_level_accepts_exactly_what_it_counts() -> None:
    cosines = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    for at in (0, 1, 700, STEPS // 2, STEPS - 1):
        accepted = places(cosines) < at
        off = accepted != (cosines >= threshold(at))
        assert int(off.sum()) <= 1  # at the edge itself, where it is not accepted
        assert not bool((off & ~accepted).any())


def test_nobody_is_in_two_pairs_and_an_odd_one_is_left_out() -> None:
    vectors = torch.eye(5).repeat_interleave(2, 0)
    tally = paired(vectors, torch.arange(5).repeat_interleave(2))
    assert (int(tally.units[0]), tally.sized) == (2, 2)
    right = STEPS // 2  # all are at right angles
    assert tally.losses[0, [right, right + 1]].tolist() == [0, 2 * UNIT]
    assert tally.sizes[[0, 1]].tolist() == [0, 2 * UNIT]  # and each is like himself
    assert int(paired(vectors[:2], torch.zeros(2)).units[0]) == 0


def test_pairs_of_sites_add_up() -> None:
    draws = torch.Generator().manual_seed(2)
    parts = [paired(*crowd(count, draws)) for count in (4, 7, 2)]
    whole = parts[0] + parts[1] + parts[2]
    assert int(whole.units[0]) == 2 + 3 + 1
    assert torch.equal(whole.losses[0], sum(one.losses[0] for one in parts))


def test_too_few_people_name_how_many_are_enough() -> None:
    tally = Tally.nothing(1)
    tally.units[0] = 5
    risk = Risk(Pairs(), "mixture", {"answer": Losses(tally, {})})
    with pytest.raises(DataError, match=r"5 pairs of people .* rate of 0\.01") as error:
        risk.levels(0.99)
    assert "at least 198 people" in error.value.cure
    assert dict(Pairs().also(FaceRecognition(fars=(0.1, 0.2)))) == {"0.1": 0.9, "0.2": 0.8}


def test_people_who_are_tested_chose_no_threshold() -> None:
    """The images of a person are in one half, as patients' are."""
    sections: dict[str, Any] = {"data": {"train": 60, "test": 60}}
    federation = federations.federation(**sections)
    object.__setattr__(federation.program, "task", FaceRecognition())
    images = trust_images(federation, False)
    labels = federation.dataset.test.labels
    tested, held = (
        {int(labels[at]) for data in part for at in data.indices.tolist()}
        for part in (images.tested, [*images.fitted, *images.cover])
    )
    assert tested
    assert held
    assert not tested & held
    assert tested | held == set(np.unique(labels).tolist())
