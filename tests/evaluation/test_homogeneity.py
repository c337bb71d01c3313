"""How sure each site's figure is, and whether the sites differ beyond chance."""

from __future__ import annotations

import math

import federations
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsight.core.intervals import wilson
from fedsight.core.types import Sum
from fedsight.evaluation.evidence import GROUPS, Evidence, T
from fedsight.evaluation.figures import Evaluator, Figures
from fedsight.evaluation.homogeneity import homogeneous, spread

CLASSES = 10


@given(
    counts=st.lists(
        st.integers(5, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
        min_size=2,
        max_size=12,
    )
)
def test_shares_are_tested_as_pearson_does(counts: list[tuple[int, int]]) -> None:
    images = np.array([n for n, _ in counts], dtype=float)
    right = np.array([k for _, k in counts], dtype=float)
    mean = right.sum() / images.sum()
    if mean in (0.0, 1.0):
        assert homogeneous([mean] * 2, [0.0, 0.0]) is None
        return
    table = np.stack([right, images - right])
    wanted = stats.chi2_contingency(table, correction=False).pvalue
    found = homogeneous(list(right / images), list(mean * (1 - mean) / images))
    assert found == pytest.approx(wanted, abs=1e-9)


def test_sites_that_are_alike_are_rarely_called_different() -> None:
    draws = np.random.default_rng(0)
    called = 0
    for _ in range(400):
        images = draws.integers(30, 200, 10)
        right = draws.binomial(images, 0.85)
        mean = right.sum() / images.sum()
        p = homogeneous(list(right / images), list(mean * (1 - mean) / images))
        called += p is not None and p < 0.05
    assert 5 <= called <= 40  # of 400; 20 are expected


def one_site_each(rights: list[float], images: int = 90) -> tuple[Evaluator, Figures]:
    """The figures of five sites with one class each, of which this share is right."""
    federation = federations.federation(
        data={"test": 10 * images}, split={"name": "labels", "sites": len(rights), "labels": 2}
    )
    evaluator = Evaluator(federation)
    labels = federation.dataset.test.labels
    confusion = np.zeros((CLASSES, CLASSES))
    for site in evaluator.sites:
        for own in np.flatnonzero(evaluator.counts(site)):
            count = int((labels == own).sum())
            confusion[own, own] = round(rights[site] * count)
            confusion[own, (own + 1) % CLASSES] = count - confusion[own, own]
    losses = np.zeros(CLASSES)
    sums = [{"confusion": Sum(confusion, len(labels)), "loss": Sum(losses, len(labels))}]
    return evaluator, evaluator.figures(sums)


def test_a_site_that_is_far_below_the_others_is_the_worst() -> None:
    evaluator, figures = one_site_each([0.95, 0.94, 0.6, 0.96, 0.95])
    found = spread(evaluator, figures, {})
    assert found.differ is not None
    assert found.differ < 1e-6
    assert found.worst == evaluator.federation.partition.name(2)
    for name, one in found.sites.items():
        assert one.score == figures.by_site[name]["score"]
        assert one.low < one.score < one.high
        assert (one.low, one.high) == pytest.approx(wilson(one.score, one.weight))
        assert one.weight <= one.tested + 1e-9
    assert set(found.plain()["sites"]) == set(figures.by_site)


def test_the_lowest_of_sites_that_differ_by_chance_is_no_worst_site() -> None:
    found = spread(*one_site_each([0.90, 0.89, 0.87, 0.91, 0.9]), {})
    assert found.differ is not None
    assert found.differ > 0.05
    assert found.worst is None
    assert len(found.sites) == 5


def test_all_right_everywhere_is_no_difference() -> None:
    found = spread(*one_site_each([1.0] * 5), {})
    assert (found.differ, found.worst) == (None, None)
    assert all(one.high == 1.0 for one in found.sites.values())


def test_other_figures_are_compared_by_their_replicates() -> None:
    federation = federations.federation(
        task={"name": "ordinal"}, split={"name": "labels", "sites": 5, "labels": 2}
    )
    names = [federation.partition.name(site) for site in range(5)]
    scores = dict(zip(names, (0.8, 0.81, 0.79, 0.8, 0.4), strict=True))
    by_site = {name: {"score": score} for name, score in scores.items()}
    figures = Figures({"score": 0.7}, by_site, None, {}, {})
    noise = np.random.default_rng(1).normal(0, 0.002, (5, GROUPS))
    evidence = {site: Evidence(None, tuple(scores[names[site]] + noise[site])) for site in range(5)}
    found = spread(Evaluator(federation), figures, evidence)
    assert found.worst == names[4]
    wanted = math.sqrt((GROUPS - 1) / GROUPS * np.square(noise[0] - noise[0].mean()).sum())
    assert found.sites[names[0]].high - scores[names[0]] == pytest.approx(T * wanted)
    assert spread(Evaluator(federation), figures, {}).sites == {}
