"""Agreement of grades with the true ones: Cohen's weighted kappa, and its interval."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsight.core.intervals import Z
from fedsight.tasks.softened import softened

Floats = npt.NDArray[np.float64]
CLOSEST = 1e-12  # how close to 1 and -1 a kappa is for its interval


def weighted_kappa(shares: Floats) -> float:
    """Kappa with quadratic weights (Cohen 1968) of shares [true, answered] that sum to 1.

    NaN, because it is undefined, if truth and answers are all one grade.
    """
    apart = _apart(len(shares))
    expected = float((apart * np.outer(shares.sum(axis=1), shares.sum(axis=0))).sum())
    return 1 - float((apart * shares).sum()) / expected if expected > 0 else math.nan


def kappa_interval(confusion: Floats) -> tuple[float, float]:
    """The 95 % interval of the kappa of counts [true, answered] over other test images.

    The variance is that of the delta method for a multinomial confusion matrix (Fleiss, Cohen and
    Everitt 1969, doi:10.1037/h0028106), on the scale of Fisher's z. NaN where kappa is.
    """
    score = weighted_kappa(confusion / max(confusion.sum(), 1.0))
    if math.isnan(score):
        return math.nan, math.nan
    soft = softened(confusion)
    count = float(soft.sum())
    shares, apart = soft / count, _apart(len(soft))
    true, answered = shares.sum(axis=1), shares.sum(axis=0)
    expected = float((apart * np.outer(true, answered)).sum())
    observed = float((apart * shares).sum())
    chance = (apart @ answered)[:, None] + (true @ apart)[None, :]  # slope of `expected`
    slope = -apart / expected + observed / expected**2 * chance
    variance = float((shares * slope**2).sum() - (shares * slope).sum() ** 2) / count
    middle = _inside(1 - observed / expected)
    half = Z * math.sqrt(max(variance, 0.0)) / (1 - middle**2)
    # From the lower of the two to the higher: the softened one errs towards none.
    ends = sorted(math.atanh(one) for one in (middle, _inside(score)))
    return min(math.tanh(ends[0] - half), score), max(math.tanh(ends[1] + half), score)


def _inside(kappa: float) -> float:
    """A kappa that has a z: of exactly 1, or -1 where all grades are the opposite ones, it is
    infinite."""
    return max(CLOSEST - 1, min(kappa, 1 - CLOSEST))


def _apart(grades: int) -> Floats:
    """The squared distance in grades [true, answered]."""
    numbers = np.arange(grades)
    return np.asarray((numbers[:, None] - numbers[None, :]) ** 2, np.float64)
