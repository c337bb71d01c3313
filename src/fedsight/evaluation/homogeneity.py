"""How sure the figure of each site is, and whether the sites differ beyond chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedsight.core.intervals import wilson
from fedsight.evaluation.evidence import GROUPS, Evidence, T, effective, weights
from fedsight.evaluation.figures import Evaluator, Figures

CHANCE = 0.05  # sites differ beyond chance if chance makes them so different less often than this
_EXPECTED = 1.0  # variance of the number of right answers below which a site is not compared


@dataclass(frozen=True)
class SiteSpread:
    """The figure of a site, its 95 % interval, and the test images that it rests on."""

    score: float
    low: float
    high: float
    tested: int
    variance: float  # of the figure; of a share, if the site were like all others
    weight: float  # images of equal weight that it rests on; of other figures 1 / variance


@dataclass(frozen=True)
class Spread:
    """The sites' spreads by name, and how often chance alone would make sites so different.

    `differ` is None if that was not tested. `worst` is the site with the lowest figure of those
    whose interval lies below the mean, if sites differ beyond chance.
    """

    sites: Mapping[str, SiteSpread] = field(default_factory=dict)
    differ: float | None = None
    worst: str | None = None

    def plain(self) -> dict[str, Any]:
        """The spreads as values for JSON."""
        keys = ("score", "low", "high", "tested")
        return {
            "sites": {
                name: {key: getattr(one, key) for key in keys} for name, one in self.sites.items()
            },
            "differ": self.differ,
        }


def spread(
    evaluator: Evaluator, figures: Figures, evidence: Mapping[int, Evidence | None]
) -> Spread:
    """The spread of each site's figure in `figures`, and the test of all together.

    A share of right answers is taken as one of as many images as would give the same spread if
    all counted alike; noise in figures widens it. Another figure needs `evidence`, by site.
    """
    if evaluator.site_test == "test part":  # all sites have the same figure
        return Spread()
    share = evaluator.federation.program.task.share
    names = evaluator.federation.partition.name
    sites = {names(site): site for site in evaluator.sites}
    scores = {
        name: one["score"]
        for name, one in figures.by_site.items()
        if name in sites and math.isfinite(one["score"])
    }
    known: dict[str, tuple[float, float]] = {}  # images or 1 / variance, and variance
    tested: dict[str, int] = {}
    for name, score in scores.items():
        weight, tested[name] = _images(evaluator, sites[name])
        noise = figures.site_errors.get(name, {}).get("score", 0.0) ** 2
        if not share:
            found = _variance(evidence.get(sites[name]))
            if found is not None and found + noise > 0:
                known[name] = 1 / (found + noise), found + noise
        elif weight > 0 and 0 <= score <= 1:
            known[name] = weight, noise
    if not known:
        return Spread()
    return _tested(scores, known, tested, share)


def _images(evaluator: Evaluator, site: int) -> tuple[float, int]:
    """How many images of equal weight the site's figure rests on, and how many in fact."""
    number = evaluator.view(site)
    if number is None:
        return 0.0, 0
    test, view = evaluator.federation.dataset.test, evaluator.federation.views[number]
    weight = weights(test.labels[view.indices], evaluator.mix_of(site))
    return effective(weight), int((weight > 0).sum())


def _variance(evidence: Evidence | None) -> float | None:
    """The variance of a figure from its replicates; None if it is not known."""
    if evidence is None or evidence.right is not None or not len(evidence.replicates):
        return None
    values = np.asarray(evidence.replicates)
    if not np.isfinite(values).all():
        return None
    squares = float(np.square(values - values.mean()).sum())
    return squares / len(values) if evidence.drawn else squares * (GROUPS - 1) / GROUPS


def _tested(
    scores: Mapping[str, float],
    known: Mapping[str, tuple[float, float]],
    tested: Mapping[str, int],
    share: bool,
) -> Spread:
    whole = sum(weight for weight, _ in known.values())
    mean = sum(scores[name] * weight for name, (weight, _) in known.items()) / whole
    sites = {}
    for name, (weight, noise) in known.items():
        score = scores[name]
        if share:
            variance = mean * (1 - mean) / weight + noise
            own = score * (1 - score) / weight
            images = weight * own / (own + noise) if noise and own else weight
            low, high = wilson(score, images)
        else:
            variance = noise
            half = T * math.sqrt(variance)
            low, high = max(-1.0, score - half), min(1.0, score + half)
        sites[name] = SiteSpread(score, low, high, tested[name], variance, weight)
    compared = {
        name: one
        for name, one in sites.items()
        if not share or one.weight * mean * (1 - mean) >= _EXPECTED
    }
    differ = homogeneous(
        [one.score for one in compared.values()], [one.variance for one in compared.values()]
    )
    below = [name for name, one in compared.items() if one.high < mean]
    worst = min(below, key=lambda name: sites[name].score, default=None)
    beyond = differ is not None and differ < CHANCE
    return Spread(sites, differ, worst if beyond else None)


def homogeneous(figures: list[float], variances: list[float]) -> float | None:
    """How often chance alone would make figures of these variances so different (Cochran 1954).

    For shares with the variances that they have if all are alike, this is the chi-squared test of
    homogeneity (Pearson 1900). It errs on the side of chance where figures are of the same images.
    None for fewer than two figures.
    """
    if len(figures) < 2 or min(variances) <= 0:
        return None
    weight = 1 / np.asarray(variances)
    values = np.asarray(figures)
    mean = float((weight * values).sum() / weight.sum())
    apart = float((weight * np.square(values - mean)).sum())
    half = torch.tensor([(len(figures) - 1) / 2, apart / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
