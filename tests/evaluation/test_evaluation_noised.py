"""Figures from noised sums: added before they are repaired, and with the error of their noise."""

from __future__ import annotations

import federations
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.types import Metrics, Sum
from fedsight.evaluation import noised
from fedsight.evaluation.figures import Evaluator
from fedsight.privacy.noised_sums import NoisedSums, deviation
from fedsight.privacy.noised_sums import noised as with_noise
from fedsight.tasks.classification import Classification

CLASSES, NOISE = 5, 1.0
TASK = Classification()
BOUNDS = TASK.bounds(CLASSES, 64)
assert BOUNDS is not None


def exact(images: int, right: float) -> dict[str, Sum]:
    """Sums of `images` images, equally many of each class, of which the share `right` is right."""
    each = images / CLASSES
    confusion = np.full((CLASSES, CLASSES), each * (1 - right) / (CLASSES - 1))
    np.fill_diagonal(confusion, each * right)
    return {
        "confusion": Sum(confusion, images),
        "loss": Sum(np.full(CLASSES, each * 0.5), images),
    }


def noisy(images: int, right: float) -> NoisedSums:
    """The same with fresh noise."""
    assert BOUNDS is not None
    return NoisedSums(with_noise(exact(images, right), BOUNDS, NOISE), deviation(BOUNDS, NOISE))


def accuracy(sums: Metrics) -> float:
    return TASK.summary(noised.usable(sums, TASK))["accuracy"]


def test_noise_of_many_sites_is_cut_off_only_after_adding() -> None:
    """Repaired one by one, many sites with few images would seem to answer worse than they do."""
    sites, few = 2500, 11
    parts = [noisy(few, 0.9) for _ in range(sites)]
    together = noised.total(parts, TASK)
    assert isinstance(together, NoisedSums)
    wide = parts[0].deviation["confusion"]
    assert together.deviation["confusion"] == pytest.approx(wide * sites**0.5)
    one_by_one = noised.total([TASK.repaired(part, part.deviation) for part in parts], TASK)
    error = wide * (CLASSES * sites) ** 0.5 / (few * sites)
    assert abs(accuracy(together) - 0.9) < 6 * error < 0.05
    assert accuracy(one_by_one) < 0.85


def test_exact_and_noised_sums_add() -> None:
    found = noised.total([exact(100_000, 0.9), {}, noisy(50, 0.2)], TASK)
    assert isinstance(found, NoisedSums)
    assert found["confusion"].count == 100_050
    assert accuracy(found) == pytest.approx(0.9, abs=0.01)
    assert not isinstance(noised.total([exact(10, 0.5), exact(10, 0.7)], TASK), NoisedSums)


def test_the_stated_error_is_that_of_the_noise() -> None:
    found = [noisy(1000, 0.8) for _ in range(60)]
    true = float(np.std([accuracy(one) for one in found]))
    stated = [noised.errors(one, TASK, TASK.summary)["accuracy"] for one in found[:5]]
    assert float(np.mean(stated)) == pytest.approx(true, rel=0.5)  # five standard errors
    assert noised.errors(exact(1000, 0.8), TASK, TASK.summary) == {}


@given(st.floats(0, 1), st.floats(1e-6, 0.5))
def test_a_figure_keeps_the_digits_that_it_carries(value: float, error: float) -> None:
    figures = {"score": value, "loss": 0.123456}
    found = noised.rounded(figures, {"score": error})
    assert found["loss"] == 0.123456
    assert abs(found["score"] - value) <= error
    assert found["score"] == float(f"{found['score']:.6f}")


def test_a_figure_that_noise_hides_has_no_error() -> None:
    nothing = {"auc": float("nan"), "loss": 1.0}
    found = noised.errors(noisy(10, 0.5), TASK, lambda sums: nothing)
    assert found == {"loss": 0.0}
    assert np.isnan(noised.rounded(nothing, found)["auc"])


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn"])
def test_sites_and_means_of_sites_have_errors_too(algorithm: str) -> None:
    """One test part for all sites, or one as each site's own model sees it."""
    of = federations.federation(algorithm={"name": algorithm}, model={"name": "small_cnn"})
    each = np.full((10, 10), 10.0)
    sums: dict[str, Sum] = {"confusion": Sum(each, 1000), "loss": Sum(np.full(10, 200.0), 1000)}
    bounds = TASK.bounds(10, 784)
    assert bounds is not None
    wide = deviation(bounds, NOISE)
    parts = [NoisedSums(with_noise(sums, bounds, NOISE), wide) for _ in of.views]
    evaluator = Evaluator(of)
    found = evaluator.figures(parts, final=True)
    assert set(found.site_errors) == set(found.by_site)
    assert 0 < found.errors["score"] < 0.05
    assert found.overall["score"] == round(found.overall["score"], 3)
    if evaluator.site_test == "whole test part":
        own = [one["score"] for one in found.site_errors.values()]
        assert found.errors["score"] == pytest.approx(np.linalg.norm(own) / len(own))
    assert evaluator.figures([sums for _ in of.views], final=True).errors == {}


def test_noise_widens_the_intervals_of_overall_figures() -> None:
    """By what it adds itself: errors of images and of noise are independent."""
    of = federations.federation(data={"owners": 2})
    each = np.full((10, 10), 1.0) + np.diag(np.full(10, 11.0))
    sums: dict[str, Sum] = {"confusion": Sum(each, 210), "loss": Sum(np.full(10, 20.0), 210)}
    bounds = TASK.bounds(10, 784)
    assert bounds is not None
    wide, evaluator = deviation(bounds, NOISE), Evaluator(of)
    plain = evaluator.figures([sums for _ in of.views], final=True)
    noisy = evaluator.figures(
        [NoisedSums(with_noise(sums, bounds, NOISE), wide) for _ in of.views], final=True
    )
    assert set(noisy.intervals) == {"accuracy", "balanced_accuracy", "macro_f1"}
    for name, (low, high) in noisy.intervals.items():
        before = plain.intervals[name]
        assert high - low > before[1] - before[0]
        assert high - low >= 2 * 1.959 * noisy.errors[name] or high == 1 or low == 0
