"""Averages over classes from a confusion matrix: balanced accuracy and macro F1, with intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsight.core.intervals import wilson
from fedsight.tasks.softened import softened

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


def balanced_accuracy(confusion: Floats, mix: Floats | None = None) -> float:
    """The mean recall of the classes, each counting the same however many images it has.

    From counts [true, predicted], over the classes that have images and, with `mix` [classes], that
    occur in it (Brodersen et al. 2010, doi:10.1109/ICPR.2010.764). NaN without any.
    """
    images = confusion.sum(axis=1)
    seen = _seen(images, mix)
    return float((np.diag(confusion)[seen] / images[seen]).mean()) if seen.any() else math.nan


def macro_f1(confusion: Floats, mix: Floats | None = None) -> float:
    """The mean F1 of the classes, each 2 right / (images + answers).

    From counts [true, predicted], over the classes that have images and, with `mix` [classes], that
    occur in it; then the images of a class count by its share. It is the mean of the F1, not the F1
    of mean precision and mean recall (Opitz and Burst 2019, arXiv:1911.03347). NaN without any.
    """
    images = confusion.sum(axis=1)
    seen = _seen(images, mix)
    if not seen.any():
        return math.nan
    if mix is not None:
        confusion = confusion * (np.where(seen, mix, 0.0) / np.maximum(images, 1))[:, None]
    return float(_f1(confusion)[seen].mean())


def balanced_accuracy_interval(confusion: Floats) -> Interval:
    """The 95 % interval of `balanced_accuracy` over other test images of the same classes."""
    soft = softened(confusion)
    images = soft.sum(axis=1)
    seen = images > 0
    recalls = np.diag(soft)[seen] / images[seen]
    spread = float((recalls * (1 - recalls) / images[seen]).sum()) / max(1, seen.sum()) ** 2
    return _interval(balanced_accuracy(confusion), balanced_accuracy(soft), spread)


def macro_f1_interval(confusion: Floats) -> Interval:
    """The 95 % interval of `macro_f1` over other test images.

    The variance is that of the delta method for a multinomial confusion matrix (Takahashi et al.
    2022, doi:10.1007/s10489-021-02635-5).
    """
    soft = softened(confusion)
    total, both = soft.sum(), soft.sum(axis=0) + soft.sum(axis=1)
    seen = soft.sum(axis=1) > 0
    if not seen.any():
        return math.nan, math.nan
    step = np.where(seen, total / np.where(both > 0, both, 1), 0.0) / seen.sum()
    fall = _f1(soft) * step
    slope = np.diag(2 * step) - fall[:, None] - fall[None, :]  # of the figure, by each cell
    chance = soft / total
    spread = float((chance * slope**2).sum() - (chance * slope).sum() ** 2) / float(total)
    return _interval(macro_f1(confusion), macro_f1(soft), spread)


def _interval(score: float, near: float, variance: float) -> Interval:
    """What Wilson gives a share of as many images as would give `near` this variance: close to 1,
    an interval with the score in its middle is too short."""
    if math.isnan(score) or near >= 1:  # nothing was tested, or there is a single answer
        return math.nan, math.nan
    return wilson(score, near * (1 - near) / max(variance, 1e-300))


def _f1(confusion: Floats) -> Floats:
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.where(both > 0, 2 * np.diag(confusion) / np.where(both > 0, both, 1), 0.0)


def _seen(images: Floats, mix: Floats | None) -> npt.NDArray[np.bool_]:
    return np.asarray(images > 0 if mix is None else (images > 0) & (mix > 0))
