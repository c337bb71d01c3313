"""Margin losses are what their papers say, and see nobody else's people."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedsight.tasks.faces.margins import (
    among_images,
    margin_loss,
    positive_loss,
    spread_loss,
)

ALL = torch.arange(3)
COSINES = torch.tensor([[0.6, 0.1, -0.2], [0.3, 0.8, 0.0]])
Y = torch.tensor([0, 1])


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_without_margin_it_is_the_normalised_softmax(kind: str) -> None:
    loss = margin_loss(COSINES, Y, ALL, kind, 0.0, 8.0)  # type: ignore[arg-type]
    assert torch.allclose(loss, F.cross_entropy(8.0 * COSINES, Y), atol=1e-5)


def test_cosface_takes_the_margin_off_the_cosine() -> None:
    loss = margin_loss(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), ALL[:2], "cosface", 0.5, 1.0)
    assert float(loss) == pytest.approx(math.log(2))


def test_arcface_adds_the_margin_to_the_angle() -> None:
    cosines = torch.tensor([[math.cos(0.7), math.cos(1.2)]])
    loss = margin_loss(cosines, torch.tensor([0]), ALL[:2], "arcface", 0.5, 1.0)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


def test_arcface_keeps_falling_where_the_angle_is_wide() -> None:
    wide = torch.tensor([[-0.99, 0.0], [-0.95, 0.0], [-0.5, 0.0]])
    losses = [
        float(margin_loss(row[None], torch.tensor([0]), ALL[:2], "arcface", 0.5, 4.0))
        for row in wide
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_other_sites_people_have_no_part(kind: str) -> None:
    own = torch.tensor([0, 1])
    cosines = COSINES.clone().requires_grad_()
    loss = margin_loss(cosines, Y, own, kind, 0.2, 8.0)  # type: ignore[arg-type]
    alone = margin_loss(COSINES[:, :2], Y, ALL[:2], kind, 0.2, 8.0)  # type: ignore[arg-type]
    assert float(loss.detach()) == pytest.approx(float(alone))
    (slope,) = torch.autograd.grad(loss, cosines)
    assert not slope[:, 2].any()


def test_gradients_are_finite_where_an_image_meets_its_vector() -> None:
    cosines = torch.tensor([[1.0, -1.0]], requires_grad=True)
    loss = margin_loss(cosines, torch.tensor([0]), ALL[:2], "arcface", 0.3, 16.0)
    (slope,) = torch.autograd.grad(loss, cosines)
    assert torch.isfinite(slope).all()


def test_the_pull_ends_where_an_image_is_near() -> None:
    assert float(positive_loss(torch.tensor([[0.95, 0.0]]), torch.tensor([0]))) == 0
    assert float(positive_loss(torch.tensor([[0.4]]), torch.tensor([0]))) == pytest.approx(0.25)


def test_vectors_within_reach_of_far_starts_stay_apart() -> None:
    draws = torch.Generator().manual_seed(0)
    starts = F.normalize(torch.randn(8, 64, generator=draws), dim=1)
    moves = F.normalize(torch.randn(8, 64, generator=draws), dim=1)
    vectors = F.normalize(starts + 0.4 * moves, dim=1)
    reach = float((vectors - starts).norm(dim=1).max())
    assert float(spread_loss(vectors, starts, reach)) == pytest.approx(0, abs=1e-9)
    least = torch.pdist(starts).min() - 2 * reach
    assert torch.pdist(vectors).min() >= least > 0
    assert float(spread_loss(vectors, starts, 0.0)) > 0


def test_the_hold_has_a_slope_where_people_begin() -> None:
    vectors = F.normalize(torch.ones(2, 4), dim=1).requires_grad_()
    (slope,) = torch.autograd.grad(spread_loss(vectors, vectors.detach(), 0.0), vectors)
    assert torch.isfinite(slope).all()


def test_an_image_is_compared_with_the_mean_of_the_persons_other_images() -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(7, 5, generator=draws), dim=1)
    y = torch.tensor([4, 2, 4, 9, 2, 4, 0])  # persons 9 and 0 have one image
    cosines, place = among_images(vectors, y)
    people, compared = [0, 2, 4, 9], [0, 1, 2, 4, 5]
    assert place.tolist() == [people.index(int(y[at])) for at in compared]
    for row, at in enumerate(compared):
        for column, person in enumerate(people):
            others = [to for to in range(7) if int(y[to]) == person and to != at]
            mean = F.normalize(vectors[others].sum(0), dim=0)
            assert float(cosines[row, column]) == pytest.approx(float(vectors[at] @ mean), abs=1e-6)


def test_without_a_second_image_of_anybody_nothing_is_compared() -> None:
    cosines, place = among_images(F.normalize(torch.eye(3), dim=1), torch.tensor([5, 6, 7]))
    assert cosines.shape == (0, 3)
    assert not len(place)
