"""ROC curves and the area under them from score histograms, which add over batches and sites."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.intervals import Z

Floats = npt.NDArray[np.float64]
BINS = 8192  # an area is exact to half the share of pairs within one bin (`auc_slack`)


def histogram(scores: Tensor, bins: int = BINS, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Counts [bins] float64 of scores of any shape, equal bins over [low, high]; outliers clamped.

    A score on an edge counts to the bin above it, `high` to the last bin. Raises ValueError for a
    score that is not a number: it would silently land in some bin.
    """
    flat = scores.detach().cpu().double().flatten()
    if bool(torch.isnan(flat).any()):
        raise ValueError("a score is not a number")
    number = ((flat - low) / (high - low) * bins).clamp(0, bins - 1).long()
    return torch.bincount(number, minlength=bins).double()


def auc(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> float:
    """Area under the ROC curve of two score histograms [bins], lowest scores first.

    The chance that a positive scores higher than a negative, ties (one bin) counting half: the
    Mann-Whitney U statistic over the number of pairs (Hanley and McNeil 1982). NaN when one of the
    histograms is empty. The area of the unbinned scores is within `auc_slack` of it.
    """
    pos, neg = _counts(positives, negatives)
    pairs = pos.sum() * neg.sum()
    if pairs == 0:
        return float("nan")
    below = np.cumsum(neg) - neg
    return float((pos * (below + neg / 2)).sum() / pairs)


def auc_slack(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> float:
    """The largest error of `auc` due to binning: half the share of pairs within one bin."""
    pos, neg = _counts(positives, negatives)
    pairs = pos.sum() * neg.sum()
    return float((pos * neg).sum() / pairs / 2) if pairs else float("nan")


def auc_interval(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> tuple[float, float]:
    """An approximate 95 % interval of `auc` over other test images (Newcombe 2006,
    doi:10.1002/sim.2324, method 5).

    Its bounds are the areas whose own spread, by the formula of Hanley and McNeil (1982), just
    reaches the one measured; with the spread at the measured area the interval is far too short
    close to 1. It takes images as independent. NaN where `auc` is.
    """
    pos, neg = _counts(positives, negatives)
    area, m, n = auc(pos, neg), float(pos.sum()), float(neg.sum())
    if np.isnan(area):
        return float("nan"), float("nan")
    return _bound(area, 0.0, m, n), _bound(area, 1.0, m, n)


def _bound(area: float, end: float, m: float, n: float) -> float:
    """The area between `area` and `end` that is furthest from `area` but within its own spread."""
    near, far = area, end
    for _ in range(50):
        middle = (near + far) / 2
        inside = abs(middle - area) <= Z * math.sqrt(_variance(middle, m, n))
        near, far = (middle, far) if inside else (near, middle)
    return near


def _variance(area: float, m: float, n: float) -> float:
    each = (m + n) / 2 - 1
    pairs = each * ((1 - area) / (2 - area) + area / (1 + area))
    return max(0.0, area * (1 - area) * (1 + pairs) / (m * n))


def roc(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates, each [bins + 1], from (0, 0) to (1, 1).

    Entry k accepts the k highest bins: its threshold is the lower edge of bin `bins - k`. Rates of
    an empty histogram are NaN. The trapezoids under the curve sum to `auc`.
    """
    pos, neg = _counts(positives, negatives)
    return _share(neg), _share(pos)


def thin(x: Floats, y: Floats, most: int = 200) -> list[tuple[float, float]]:
    """The curve's points (x, y) for drawing: only corners, and at most `most` of them."""
    keep = np.ones(len(x), dtype=bool)
    if len(x) > 2:  # a point on a straight line between its neighbours adds nothing
        turn = np.diff(x)[:-1] * np.diff(y)[1:] - np.diff(x)[1:] * np.diff(y)[:-1]
        keep[1:-1] = np.abs(turn) > 0
    points = np.stack([x[keep], y[keep]], axis=1)
    if len(points) > most:
        points = points[np.linspace(0, len(points) - 1, most).round().astype(int)]
    return [(float(a), float(b)) for a, b in points]


def _share(counts: Floats) -> Floats:
    total = counts.sum()
    above = np.concatenate([[0.0], np.cumsum(counts[::-1])])
    return above / total if total else np.full(len(above), np.nan)


def _counts(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> Sequence[Floats]:
    pos, neg = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    if pos.ndim != 1 or pos.shape != neg.shape:
        raise ValueError(f"histograms of shapes {pos.shape} and {neg.shape}; both must be [bins]")
    return pos, neg
