"""A temperature from sums with noise: what an image adds is bounded, without noise confidence is
right at it, and where noise could hide that it is, there is none."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.core.types import Sum
from fedsight.evaluation.trust import noised
from fedsight.evaluation.trust.answers import Answers
from fedsight.evaluation.trust.calibration import calibrated
from fedsight.evaluation.trust.noised_temperature import POWERS, SURE, Confidence, counted
from fedsight.privacy import noised_sums
from fedsight.privacy.noised_sums import GRID, NoisedSums

IMAGES, CLASSES = 4000, 10


def answers(logits: Tensor, labels: Tensor) -> Answers:
    none = torch.zeros(len(labels), 0)
    return Answers(logits, labels, torch.zeros_like(labels), none)


def drawn(heat: float, seed: int, images: int = IMAGES) -> Answers:
    """Answers that are right as often as they say at a temperature `heat`."""
    made = torch.Generator().manual_seed(seed)
    logits = heat * 2.5 * torch.randn(images, CLASSES, generator=made)
    labels = calibrated(logits, heat).multinomial(1, generator=made).squeeze(1)
    return answers(logits, labels)


def gap(of: Answers, heat: float) -> float:
    """How much more confident answers are than right at a temperature."""
    sure, said = calibrated(of.logits, heat).max(1)
    return float(sure.mean() - (said == of.labels).double().mean())


finite = st.floats(-1e4, 1e4, width=32)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=4), st.integers(0, 2))
def test_an_image_adds_at_most_one_in_all(rows: list[tuple[float, ...]], label: int) -> None:
    logits = torch.tensor(rows)
    labels = torch.full((len(rows),), label)
    total = np.asarray(counted(answers(logits, labels)).total)
    assert (total >= 0).all()
    assert (total / GRID == np.floor(total / GRID)).all(), "on the grid of the noise"
    for at in range(len(rows)):
        one = np.asarray(counted(answers(logits[at : at + 1], labels[at : at + 1])).total)
        assert one.sum() <= 1
        assert one.all(1).sum() <= 1, "in one row: it is answered right or wrong"
        total = total - one
    assert not total.any(), "an image adds what it adds alone"


@pytest.mark.parametrize("heat", [0.3, 0.6, 1.0, 1.7, 3.5])
def test_without_noise_confidence_is_right_at_the_temperature(heat: float) -> None:
    of = drawn(heat, 1)
    found = Confidence.of(counted(of), 0.0)
    assert [found.gaps[at] for at in (0, 4, 8)] == pytest.approx(
        [gap(of, 2.0 ** POWERS[at]) for at in (0, 4, 8)], abs=1e-4
    )
    assert all(one >= other for one, other in pairwise(found.gaps))
    assert abs(gap(of, found.temperature)) < 0.01
    assert found.temperature == pytest.approx(heat, rel=0.06)


@pytest.mark.parametrize("heat", [1 / 40, 40.0])
def test_a_temperature_is_one_of_those_that_are_compared(heat: float) -> None:
    found = Confidence.of(counted(drawn(heat, 2)), 0.0)
    assert found.temperature == 2.0 ** (POWERS[0] if heat < 1 else POWERS[-1])


def with_noise(of: Sum, multiplier: float) -> Confidence:
    bounds = noised.BOUNDS
    blank = dict.fromkeys(bounds, Sum(np.zeros(1), of.count))
    made = noised_sums.noised({**blank, noised.CONFIDENCE: of}, bounds, multiplier)
    noise = noised_sums.deviation(bounds, multiplier)
    return Confidence.of(NoisedSums(made, noise)[noised.CONFIDENCE], noise[noised.CONFIDENCE])


def test_the_noise_of_a_gap_is_what_it_is_taken_for() -> None:
    exact = counted(drawn(1.0, 3))
    found = [with_noise(exact, 5.0) for _ in range(400)]
    chance = 1 / (4 * IMAGES)
    noise = math.sqrt(found[0].deviation ** 2 - chance)
    for at in (0, 4, 8):
        spread = float(np.std([one.gaps[at] for one in found]))
        assert spread == pytest.approx(noise, rel=0.15)


@pytest.mark.parametrize("heat", [1.0, 1.15, 1.3])
def test_a_temperature_that_noise_makes_up_is_left_out(heat: float) -> None:
    """In at most 1 of 20 runs it leaves confidence farther off than it was."""
    of, runs = drawn(heat, 4), 400
    exact, before = counted(of), abs(gap(drawn(heat, 4), 1.0))
    worse = taken = naive = 0
    for _ in range(runs):
        found = with_noise(exact, 10.0)
        bad = abs(gap(of, found.temperature)) > before
        naive += bad
        worse += bad and found.is_known
        taken += found.is_known
    assert worse / runs < 1 / 20 + 0.02
    if heat == 1.0:
        assert naive > runs / 2, "taken whatever the noise, it makes things worse"


def test_where_it_is_far_off_noise_does_not_hide_it() -> None:
    of, runs = drawn(2.5, 5), 50
    found = [with_noise(counted(of), 1.0) for _ in range(runs)]
    assert all(one.is_known for one in found)
    assert max(abs(gap(of, one.temperature)) for one in found) < abs(gap(of, 1.0)) / 3


def test_of_few_images_nothing_is_known_whatever_they_say() -> None:
    few = drawn(3.0, 6, images=9)
    found = Confidence.of(counted(few), 0.0)
    assert found.deviation >= 1 / 6
    assert found.is_known == (abs(found.gap) >= SURE / 6)
