"""Temperatures are found again, and calibration errors are those of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsight.evaluation.trust.calibration import UNIT, best_temperature, brier, losses
from fedsight.evaluation.trust.reliability import Reliability, counted


def drawn(images: int, seed: int, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax at `temperature` is the law that labels are drawn from."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 4, generator=draws).double() * 2
    labels = torch.softmax(logits, 1).multinomial(1, generator=draws).squeeze(1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_temperature_is_recovered_from_sums_of_sites(temperature: float) -> None:
    logits, labels = drawn(20_000, 1, temperature)
    site = torch.arange(len(labels)) % 3

    def ask(asked: object) -> torch.Tensor:
        return sum(losses(logits[site == one], labels[site == one], asked) for one in range(3))

    found = best_temperature(ask)
    assert found == pytest.approx(temperature, rel=0.04)
    assert found == best_temperature(lambda asked: losses(logits, labels, asked))
    around = losses(logits, labels, [found / 1.02, found, found * 1.02])
    assert int(around.argmin()) == 1


def test_sums_are_the_same_whatever_the_split() -> None:
    logits, labels = drawn(997, 2)
    shares = torch.softmax(logits, 1)
    site = torch.randint(0, 5, (997,), generator=torch.Generator().manual_seed(0))
    parts = [site == one for one in range(5)]
    assert torch.equal(
        sum(counted(shares[one], labels[one]) for one in parts), counted(shares, labels)
    )
    assert sum(brier(shares[one], labels[one]) for one in parts) == brier(shares, labels)
    truth = torch.nn.functional.one_hot(labels, 4)
    assert brier(shares, labels) / UNIT == pytest.approx(float((shares - truth).square().sum()))


def test_the_error_of_bins_that_can_be_counted_by_hand() -> None:
    """100 answers of confidence 0.9, 80 right; 100 of confidence 0.6, 70 right: off by 0.1."""
    shares = torch.tensor([[0.9, 0.1]] * 100 + [[0.6, 0.4]] * 100)
    labels = torch.tensor([0] * 80 + [1] * 20 + [0] * 70 + [1] * 30)
    found = Reliability.of(counted(shares, labels))
    assert found.images.tolist() == [100, 100]
    assert found.right.tolist() == [70, 80]
    assert found.confidence.tolist() == pytest.approx([0.6, 0.9], abs=1e-6)
    assert found.naive == pytest.approx(0.1, abs=1e-6)
    # E|N(0.1, s)| is 0.1 within 0.001 for deviations s of 0.04 and 0.046
    draws = np.random.RandomState(0)
    deviations = np.sqrt([0.7 * 0.3 / 99, 0.8 * 0.2 / 99])
    chance = np.abs(draws.normal(0.1, deviations, (400_000, 2))).mean() - 0.1
    assert found.ece == pytest.approx(0.1 - chance, abs=2e-4)
    assert found.square == pytest.approx(0.01 - np.square(deviations).mean(), abs=1e-6)


def test_a_calibrated_model_has_hardly_an_error_and_a_naive_one_shows_chance() -> None:
    naive, debiased, squares = [], [], []
    for seed in range(30):
        logits, labels = drawn(500, seed)
        found = Reliability.of(counted(torch.softmax(logits, 1), labels))
        naive.append(found.naive)
        debiased.append(found.ece)
        squares.append(found.square)
    assert np.mean(naive) > 0.04
    assert np.mean(debiased) < 0.7 * np.mean(naive)
    spread = np.std(squares, ddof=1) / np.sqrt(len(squares))
    assert abs(np.mean(squares)) < 3 * spread  # no bias, and no slack to hide one:
    assert spread < 0.1 * np.mean(np.square(naive))
    logits, labels = drawn(100_000, 99)
    assert Reliability.of(counted(torch.softmax(logits, 1), labels)).ece < 0.004


def test_bins_have_about_equal_numbers_of_images_and_the_interval_holds_the_error() -> None:
    logits, labels = drawn(3000, 5, 3.0)
    found = Reliability.of(counted(torch.softmax(logits, 1), labels))
    assert len(found.images) == 15
    assert found.images.sum() == 3000
    assert found.images.max() < 2 * 3000 / 15
    low, high = found.interval(0)
    assert low < found.ece < high
    assert low > 0.1
    assert high - low < 0.05
    rows = found.plain()
    assert all(one["low"] <= one["accuracy"] <= one["high"] for one in rows)


def test_the_interval_of_a_calibrated_model_reaches_zero() -> None:
    """What is true is 0: an interval of 95 % that misses it in most cases is none."""
    hits, held = 0, 0
    for seed in range(100):
        logits, labels = drawn(120, seed)
        found = Reliability.of(counted(torch.softmax(logits, 1), labels))
        low, high = found.interval(seed)
        hits += low == 0
        held += low <= found.ece <= high
    assert hits >= 90
    assert held == 100
