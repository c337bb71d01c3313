"""A temperature from sums with noise: the one at which a model is as often right as it says.

Temperatures are mostly chosen by losses, and noise would hide what these differ by: an image's loss
has no bound that is small. So the mean confidence is made equal to the share of right answers
(expectation consistency, Clarté et al. 2023, arXiv:2303.02644), which takes sums of
confidences at a few temperatures. An image that is answered right adds how much its confidence
lacks, and one that is answered wrong its confidence; each adds to one number what it has at one end
of the temperatures, and to the others what is more at each next one. That is at most 1 in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedsight.core.types import Sum
from fedsight.evaluation.trust.answers import Answers
from fedsight.evaluation.trust.calibration import calibrated
from fedsight.privacy.noised_sums import GRID

OCTAVES, STEPS = 2, 2  # temperatures from 2^-OCTAVES to 2^OCTAVES, so many of an octave
POWERS = [step / STEPS for step in range(-OCTAVES * STEPS, OCTAVES * STEPS + 1)]
SHAPE = (2, len(POWERS))  # of images that are answered right, and of those answered wrong
# Standard deviations, of noise and of chance, that confidence has to be off by for a temperature to
# be made of it. Then it leaves mean confidence farther off than before in at most 1 of 20 runs:
# that is likeliest where confidence is off by half of this, and noise adds the other half.
SURE = 3.3


def counted(answers: Answers) -> Sum:
    """What one site's images add [2, POWERS], without noise, each at most 1 in all on the grid."""
    found = np.zeros(SHAPE)
    if not len(answers):
        return Sum(found, 0)
    said = answers.logits.argmax(1)
    sure = torch.stack(
        [
            calibrated(answers.logits, 2.0**power).gather(1, said[:, None]).squeeze(1)
            for power in POWERS
        ],
        dim=1,
    ).numpy()  # [n, POWERS], falling
    right = (said == answers.labels).numpy()
    rising = np.diff(1 - sure[right], prepend=0.0, axis=1)
    falling = -np.diff(sure[~right], append=0.0, axis=1)
    for row, each in enumerate((rising, falling)):
        found[row] = (np.floor(each.clip(0) / GRID) * GRID).sum(0)
    return Sum(found, len(answers))


@dataclass(frozen=True)
class Confidence:
    """How much more confident a model is than it is right, on average over so many images, at each
    of the temperatures [POWERS]; and the standard deviation of that, by noise and by chance."""

    gaps: npt.NDArray[np.float64]
    deviation: float

    @classmethod
    def of(cls, noised: Sum, deviation: float) -> Confidence:
        """By the sums [2, POWERS] of all sites with noise of this standard deviation in each
        number, and the true number of images."""
        right, wrong = np.asarray(noised.total, np.float64)
        gaps = (wrong[::-1].cumsum()[::-1] - right.cumsum()) / noised.count
        numbers = len(POWERS) + 1  # that each gap is the sum of
        chance = 1 / (4 * noised.count)  # the most that right answers vary by, as often as said
        noise = numbers * (deviation / noised.count) ** 2
        return cls(gaps, math.sqrt(noise + chance))

    @property
    def gap(self) -> float:
        """How much more confident the model is than it is right, as it is."""
        return float(self.gaps[POWERS.index(0.0)])

    @property
    def is_known(self) -> bool:
        """Whether more than noise and chance can make the model seem to be off."""
        return abs(self.gap) >= SURE * self.deviation

    @property
    def temperature(self) -> float:
        """The temperature at which confidence is right on average, between the first and the last
        of those that are compared."""
        falling = np.minimum.accumulate(self.gaps)  # as it is without noise
        other = np.maximum.accumulate(self.gaps[::-1])[::-1]
        gaps = (falling + other) / 2
        return float(2.0 ** np.interp(0.0, -gaps, POWERS))
