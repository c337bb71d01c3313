"""Prediction sets and a threshold for unlike images from histograms with noise.

Where noise protects what sites send, each adds Gaussian noise to two coarse histograms of all its
test images, or of one image of each group: of the scores of the true class, and of the energies.
(And to sums of confidence, see `noised_temperature.py`.) How many images lie beyond an
edge is then known up to that noise. Here each such number is taken as large as it can be: with
probability 1 - FAILED none is less than the true one. A threshold made of these numbers is then not
below the exact one, and FAILED is added to the coverage that is asked. So a set of a new image
holds its class with at least the probability that was asked, noise included; the price is larger
sets, or none where the noise hides all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from fedsight.core.types import Sum
from fedsight.evaluation.trust import noised_temperature
from fedsight.evaluation.trust.answers import Answers
from fedsight.evaluation.trust.conformal import BINS, draws, histogram, scores
from fedsight.evaluation.trust.scaling import TemperatureScaling
from fedsight.evaluation.trust.unlike import energy

COARSE = 32  # bins: few, because the noise of all bins beyond an edge adds up
FAILED = 1e-3  # the probability that any number is larger than it is taken for
SCORES, ENERGY, CONFIDENCE = "scores", "energy", "confidence"
# Each image adds 1 to one number of each of the first two, and at most 1 in all to the third.
BOUNDS = {SCORES: 1.0, ENERGY: 1.0, CONFIDENCE: 1.0}
SHAPES: dict[str, tuple[int, ...]] = {
    SCORES: (COARSE,), ENERGY: (COARSE,), CONFIDENCE: noised_temperature.SHAPE
}  # fmt: skip
# Sets are made of the scores as they are, so the images that choose a temperature choose no scores.
PLAIN = TemperatureScaling(1.0)


def counted(answers: Answers, method: str) -> dict[str, Sum]:
    """The sums over one site's images, without noise."""
    logits = answers.logits
    each = scores(method, PLAIN.shares(logits), draws(logits))
    truth = each.gather(1, answers.labels[:, None]).squeeze(1)
    both = {SCORES: truth, ENERGY: energy(logits)}
    found = {name: Sum(coarse(histogram(one)), len(answers)) for name, one in both.items()}
    return {**found, CONFIDENCE: noised_temperature.counted(answers)}


def nothing(images: int) -> dict[str, Sum]:
    """The same of a site whose measuring fails: all images are in the last bin.

    Zeros would say that no image lies beyond any edge, and thresholds would be too low. Of
    confidence zeros say that it is right.
    """
    counts = np.zeros(COARSE)
    counts[-1] = images
    found = {name: Sum(counts.copy(), images) for name in (SCORES, ENERGY)}
    return {**found, CONFIDENCE: Sum(np.zeros(noised_temperature.SHAPE), images)}


def coarse(counts: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A histogram [BINS] in COARSE bins."""
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    found = counts.reshape(COARSE, -1).sum(1).double().numpy()
    return found


def envelope(noised: Sum, deviation: float) -> Tensor:
    """A histogram int64 [BINS] of as many images, by which thresholds are nowhere too low.

    `noised` is a histogram [COARSE] with noise of this standard deviation in each number, over all
    sites together, and the true number of images.
    """
    images, counts = noised.count, np.asarray(noised.total, np.float64)
    sure = NormalDist().inv_cdf(1 - FAILED / (COARSE - 1))
    beyond, least = [images], images  # the images from each edge on
    for edge in range(1, COARSE):
        far = float(counts[edge:].sum()) + sure * deviation * math.sqrt(COARSE - edge)
        least = min(least, max(0, math.floor(far + 1e-6)))
        beyond.append(least)
    extra = math.ceil((images + 1) * FAILED)  # as if so much more coverage had been asked
    beyond = [images, *(min(images, one + extra) for one in beyond[1:]), 0]
    found = torch.zeros(BINS, dtype=torch.int64)
    width = BINS // COARSE
    for place in range(COARSE):
        found[(place + 1) * width - 1] = beyond[place] - beyond[place + 1]
    return found


def added(sums: Iterable[Mapping[str, Sum]], name: str) -> Sum:
    """The sums `name` of all of these together."""
    each = [one[name] for one in sums]
    return Sum(np.sum([one.total for one in each], axis=0), sum(one.count for one in each))


def deviation_of(noises: Iterable[float]) -> float:
    """The standard deviation of noise of these deviations together."""
    return math.sqrt(sum(noise**2 for noise in noises))
