"""How right a model's confidence is, from histograms that sites add up.

Bins are narrow and even in the confidence's log-odds; the coordinator joins them into few bins of
about equal numbers of images. Errors of these are too large by chance alone. The mean square has an
unbiased estimate (Kumar et al. 2019, arXiv:1909.10155, section 5). The mean absolute value,
which is what is usually called expected calibration error, has none; what chance adds to an error
like the one that is seen is subtracted, which of a perfect model leaves about six tenths of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.intervals import wilson
from fedsight.evaluation.trust.calibration import UNIT

FINE = 2048  # bins that sites count in
FARTHEST = 16.0  # log-odds of the first and the last of them
JOINED = 15  # bins that these become, if there are enough images
FEWEST = 20  # images of such a bin
DRAWN = 200  # times that images are drawn again for an interval


def places(probabilities: Tensor) -> Tensor:
    """The numbers of the bins [n] of probabilities [n]."""
    odds = torch.logit(probabilities.double(), eps=1e-12)
    found = ((odds + FARTHEST) / (2 * FARTHEST) * FINE).floor()
    return found.clamp(0, FINE - 1).to(torch.int64)


def counted(probabilities: Tensor, labels: Tensor, answers: Tensor | None = None) -> Tensor:
    """The images of each bin, those of them with a right answer, and their confidence in units of
    1 / UNIT: int64 [FINE, 3], from probabilities [n, classes] and class numbers [n].

    `answers` [n] are the classes that the model says; None: the most probable ones.
    """
    if answers is None:
        answers = probabilities.argmax(1)
    sure = probabilities.double().gather(1, answers[:, None]).squeeze(1)
    units = (sure * UNIT).round().to(torch.int64)
    rows = torch.stack([torch.ones_like(units), (answers == labels).to(torch.int64), units], 1)
    return torch.zeros(FINE, 3, dtype=torch.int64).index_add_(0, places(sure), rows)


@dataclass(frozen=True)
class Reliability:
    """Few bins: the numbers [bins] of images and of right answers, and the mean confidence."""

    images: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]

    @classmethod
    def of(cls, counts: Tensor) -> Reliability:
        """Bins of about equal numbers of images, from added histograms [FINE, 3]."""
        fine = counts.numpy().astype(np.float64)
        fine = fine[fine[:, 0] > 0]
        total = fine[:, 0].sum()
        bins = int(max(1, min(JOINED, total // FEWEST)))
        joined, rest = [np.zeros(3)], total
        for row in fine:
            left = bins - len(joined) + 1  # bins that are not full
            if left > 1 and joined[-1][0] >= (rest + joined[-1][0]) / left:
                joined.append(np.zeros(3))
            joined[-1] = joined[-1] + row
            rest -= row[0]
        images, right, sure = np.array(joined).T
        return cls(images, right, sure / UNIT / np.maximum(images, 1))

    @property
    def ece(self) -> float:
        """The expected calibration error without what chance adds, at least 0."""
        return self._ece(1.0)

    @property
    def square(self) -> float:
        """The mean square of the error without what chance adds, unbiased; it may be negative."""
        weight, apart, variance = self._parts()
        return float((weight * (apart**2 - variance)).sum())

    @property
    def naive(self) -> float:
        """The expected calibration error as the bins show it."""
        weight, apart, _ = self._parts()
        return float((weight * np.abs(apart)).sum())

    def interval(self, seed: int) -> tuple[float, float]:
        """The 95 % interval of `ece`, from images drawn again.

        These say little where the error is near 0, which bounds it. So its low end is 0 where a
        calibrated model, whose answers in a bin are right as often as it says, shows an error as
        large in more than 1 of 40 draws.
        """
        draws = np.random.RandomState(seed % 2**32)
        total = self.images.sum()
        found = []
        for _ in range(DRAWN):
            images = draws.multinomial(int(total), self.images / total).astype(np.float64)
            right = draws.binomial(images.astype(np.int64), self.right / self.images)
            again = Reliability(np.maximum(images, 1e-9), right.astype(float), self.confidence)
            found.append(again._ece(2.0))  # a second draw adds as much chance as the first
        low, high = np.percentile(found, [2.5, 97.5])
        if self.ece <= np.percentile([self._calibrated(draws).ece for _ in range(DRAWN)], 97.5):
            low = 0.0
        return float(low), float(max(high, self.ece))

    def plain(self) -> list[dict[str, Any]]:
        """The bins of the diagram as values for JSON, with 95 % intervals of the shares."""
        rows = []
        for images, right, sure in zip(self.images, self.right, self.confidence, strict=True):
            low, high = wilson(right / images, images)
            rows.append(
                {
                    "images": int(images), "confidence": float(sure),
                    "accuracy": float(right / images), "low": low, "high": high,
                }
            )  # fmt: skip
        return rows

    def _calibrated(self, draws: np.random.RandomState) -> Reliability:
        """The same bins with answers drawn from the confidence."""
        right = draws.binomial(self.images.astype(np.int64), np.clip(self.confidence, 0, 1))
        return Reliability(self.images, right.astype(float), self.confidence)

    def _ece(self, times: float) -> float:
        """The error without what `times` the variance of one draw of images adds."""
        weight, apart, variance = self._parts()
        added = folded(np.abs(apart), np.sqrt(times * variance)) - np.abs(apart)
        return max(0.0, float((weight * (np.abs(apart) - added)).sum()))

    def _parts(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Of each bin its share of images, accuracy minus confidence, and the latter's variance."""
        images = np.maximum(self.images, 1e-9)
        accuracy = self.right / images
        variance = accuracy * (1 - accuracy) / np.maximum(images - 1, 1)
        return self.images / self.images.sum(), accuracy - self.confidence, variance


def folded(
    mean: npt.NDArray[np.float64], deviation: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The mean absolute value of normal variables [n] (Leone et al. 1961, eq. 4)."""
    safe = np.maximum(deviation, 1e-12)
    ratio = mean / safe
    erf = np.array([math.erf(value / math.sqrt(2)) for value in ratio])
    return np.asarray(safe * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + mean * erf)
