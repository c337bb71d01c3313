"""Scalings find what was done to a model's scores, from sums that no split changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.evaluation.trust import scaling
from fedsight.evaluation.trust.calibration import UNIT, brier
from fedsight.evaluation.trust.reliability import FINE
from fedsight.evaluation.trust.scaling import (
    SCALINGS,
    IsotonicScaling,
    TemperatureScaling,
    VectorScaling,
    rising,
    sloped,
)

FACTORS = torch.tensor([0.5, 1.0, 2.0, 1.3], dtype=torch.float64)
OFFSETS = torch.tensor([0.4, -0.6, 0.0, 0.2], dtype=torch.float64)


def drawn(images: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The true law of labels [n, 4], its scores distorted class by class, and labels."""
    draws = torch.Generator().manual_seed(seed)
    true = torch.randn(images, 4, generator=draws).double() * 2
    labels = torch.softmax(true, 1).multinomial(1, generator=draws).squeeze(1)
    return torch.softmax(true, 1), (true - OFFSETS) / FACTORS, labels


def test_factors_and_offsets_are_found_again() -> None:
    _, logits, labels = drawn(40_000, 1)
    found = VectorScaling.fitted(logits, labels)
    factors = found.factors / found.temperature
    torch.testing.assert_close(factors, FACTORS, rtol=0.05, atol=0)
    offsets = found.offsets - factors * found.centre
    off = offsets - offsets.mean()  # all together they change nothing
    torch.testing.assert_close(off, OFFSETS - OFFSETS.mean(), rtol=0, atol=0.05)


def test_the_slopes_are_those_of_the_loss() -> None:
    _, logits, labels = drawn(50, 2)
    at = torch.cat([FACTORS, OFFSETS]).requires_grad_()

    def loss(at: Tensor) -> Tensor:
        shares = logits * at[:4] + at[4:]
        return torch.nn.functional.cross_entropy(shares, labels, reduction="sum")

    gradient, curvature = sloped(logits, labels, at.detach())
    (expected,) = torch.autograd.grad(loss(at), at)
    torch.testing.assert_close(gradient.double() / UNIT, expected, rtol=0, atol=1e-5)
    curved = torch.autograd.functional.hessian(loss, at.detach())
    torch.testing.assert_close(curvature.double() / UNIT, curved, rtol=1e-3, atol=0.02)


def test_sums_of_sites_are_those_of_all_images() -> None:
    _, logits, labels = drawn(999, 3)
    at, site = torch.cat([FACTORS, OFFSETS]), torch.arange(999) % 5
    parts = [sloped(logits[site == one], labels[site == one], at) for one in range(5)]
    whole = sloped(logits, labels, at)
    for number in range(2):
        assert torch.equal(sum(one[number] for one in parts), whole[number])


@pytest.mark.parametrize(("kind", "part"), [("temperature", 1), ("vector", 0.2), ("isotonic", 0.8)])
def test_it_comes_closer_to_the_true_law_than_the_scores(kind: str, part: float) -> None:
    true, logits, labels = drawn(6000, 4)
    found, reason = scaling.fitted(kind, logits[:4000], labels[:4000])
    assert (found.kind, reason) == (kind, "")
    shares = found.shares(logits[4000:])
    torch.testing.assert_close(shares.sum(1), torch.ones(2000, dtype=torch.float64))
    before = torch.softmax(logits[4000:], 1)
    assert brier(shares, labels[4000:]) < brier(before, labels[4000:])
    off = [float((one - true[4000:]).abs().mean()) for one in (shares, before)]
    assert off[0] < part * off[1]


@pytest.mark.parametrize("kind", SCALINGS)
def test_few_images_fit_nothing(kind: str) -> None:
    _, logits, labels = drawn(SCALINGS[kind].fewest(4), 5)
    found, reason = scaling.fitted(kind, logits[1:], labels[1:])
    assert str(SCALINGS[kind].fewest(4)) in reason
    assert found.kind == "temperature"
    assert (found == TemperatureScaling(1.0)) == (kind == "temperature")
    assert scaling.fitted(kind, logits, labels)[0].kind == kind
    if kind != "temperature":
        classes = SCALINGS[kind].most + 1
        many = torch.zeros(SCALINGS[kind].fewest(classes), classes)
        found, reason = scaling.fitted(kind, many, labels.new_zeros(len(many)))
        assert found.kind == "temperature"
        assert f"at most {classes - 1} classes" in reason


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_file_keeps_it(kind: str) -> None:
    _, logits, labels = drawn(500, 6)
    found, _ = scaling.fitted(kind, logits, labels)
    again = scaling.of(json.loads(json.dumps(scaling.plain(found))), 4)
    assert torch.equal(again.shares(logits), found.shares(logits))
    with pytest.raises((KeyError, TypeError, ValueError)):
        SCALINGS[kind].of({"factors": [1.0] * 3, "temperature": 0, "steps": []}, 4)


def test_a_class_that_is_never_seen_keeps_a_finite_share() -> None:
    _, logits, labels = drawn(800, 7)
    known = labels != 2
    for kind in SCALINGS:
        shares = scaling.fitted(kind, logits[known], labels[known])[0].shares(logits)
        assert bool(torch.isfinite(shares).all())
        assert bool((shares > 0).all())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("images", "classes", "sure"), [(500, 10, 3), (96, 4, 2), (25, 2, 1)])
def test_the_loss_of_a_vector_is_never_above_that_of_a_temperature(
    images: int, classes: int, sure: float, seed: int
) -> None:
    """Of accurate models too, whose loss has hardly any curvature."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=draws)
    truth = torch.nn.functional.one_hot(labels, classes)
    logits = (torch.randn(images, classes, generator=draws) + 4 * truth) * sure

    def loss(found: scaling.Scaling) -> float:
        return float(torch.nn.functional.nll_loss(found.shares(logits).log(), labels))

    vector, heat = (kind.fitted(logits, labels) for kind in (VectorScaling, TemperatureScaling))
    assert loss(vector) <= loss(heat) + 1e-6
    assert bool((vector.factors > 0).all())


def test_where_scores_lie_and_how_large_they_are_changes_hardly_anything() -> None:
    _, logits, labels = drawn(400, 9)
    one = VectorScaling.fitted(logits, labels)
    for added, times in ((-200.0, 1), (70.0, 1), (0.0, 60)):
        other = VectorScaling.fitted(times * logits + added, labels)
        shares = other.shares(times * logits + added)
        torch.testing.assert_close(shares, one.shares(logits), rtol=0, atol=0.02)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_pools_are_the_rising_values_of_least_squares(bins: list[tuple[int, int]]) -> None:
    """The oracle: max over beginnings of the min over ends of the mean (Barlow et al. 1972)."""
    right = [min(pair) for pair in bins]
    images = [max(pair) for pair in bins]
    found = rising(right, images)
    assert found == sorted(found)
    assert 0 < found[0] <= found[-1] < 1
    seen = [at for at, count in enumerate(images) if count]
    hits, counts = np.array(right)[seen], np.array(images)[seen]
    for at in range(len(seen)):
        best, pool = -1.0, (0, 0)
        for low in range(at + 1):
            ends = [
                (hits[low:high].sum() / counts[low:high].sum(), -high)
                for high in range(at + 1, len(seen) + 1)
            ]
            mean, high = min(ends)
            if mean > best:
                best, pool = mean, (low, -high)
        inside = slice(*pool)
        value = (hits[inside].sum() + 0.5) / (counts[inside].sum() + 1)
        assert found[seen[at]] >= value - 1e-12  # smoothing may lift it to that of a lower pool


def test_steps_follow_the_bins() -> None:
    _, logits, labels = drawn(2000, 8)
    found = IsotonicScaling.fitted(logits, labels)
    assert found.steps.shape == (4, FINE)
    assert bool((found.steps.diff(dim=1) >= 0).all())
