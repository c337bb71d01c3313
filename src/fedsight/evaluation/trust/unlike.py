"""How unlike those of the training an image is: the energy of its scores, or the distance of its
features from those of the nearest class.

Classes have means and one covariance in common (Lee et al. 2018, arXiv:1807.03888, eq. 1). Sites
add up whole numbers, so both are the same however the images are divided. Many features are first
mixed at random into few, which keeps distances (Johnson and Lindenstrauss 1984): fewer numbers
travel, and fewer images tell how they vary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsight.core.rng import generator

LEVELS = 1024.0  # of a feature of 1
FARTHEST = 1024.0  # features beyond count as this: 2^22 images fit into 64 bits
TOGETHER = 256  # images whose products float64 adds exactly: 2^8 times 2^40
KEPT = 128  # numbers that features are mixed into
SHRUNK = 1e-2  # of the mean variance, added to each: few images leave some directions empty
ENERGY_SCALE = 8.0  # the energy that is half-way to the end of the scale


def mixing(width: int) -> Tensor:
    """What mixes so many features into few: [width, min(width, KEPT)]; as they are, if few."""
    if width <= KEPT:
        return torch.eye(width)
    drawn = torch.randn(width, KEPT, generator=generator(0, "features"))
    return drawn / math.sqrt(KEPT)


@dataclass(frozen=True)
class FeatureSums:
    """The images of each class [classes], the sums [classes, d] of their features in levels, and
    the sum [d, d] of their products, all int64."""

    images: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> FeatureSums:
        """Those of mixed features [n, d] and class numbers [n]."""
        width = features.shape[1]
        levels = (_bounded(features) * LEVELS).round()
        sums = torch.zeros(classes, width, dtype=torch.int64)
        sums.index_add_(0, labels, levels.to(torch.int64))
        products = torch.zeros(width, width, dtype=torch.int64)
        for part in levels.split(TOGETHER):
            products += (part.T @ part).to(torch.int64)
        return cls(torch.bincount(labels, minlength=classes), sums, products)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(
            self.images + other.images, self.sums + other.sums, self.products + other.products
        )

    def fitted(self) -> Distance:
        """The means of the classes that have images, and what makes features comparable."""
        there = self.images > 0
        images, sums = self.images[there].double(), self.sums[there].double() / LEVELS
        means, total = sums / images[:, None], float(images.sum())
        covariance = self.products.double() / LEVELS**2 - means.T @ sums
        covariance = (covariance + covariance.T) / (2 * max(1.0, total - len(means)))
        spread = float(covariance.diagonal().mean())
        covariance += max(SHRUNK * spread, 1e-9) * torch.eye(len(covariance), dtype=torch.float64)
        lower = torch.linalg.cholesky(covariance)
        one = torch.eye(len(lower), dtype=torch.float64)
        whitening = torch.linalg.solve_triangular(lower, one, upper=False)
        return Distance(whitening.float(), (means @ whitening.T).float())


@dataclass(frozen=True)
class Distance:
    """`whitening` [d, d] makes features uncorrelated with variance one; `means` [k, d] are those
    of classes after it."""

    whitening: Tensor
    means: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """The squared distance of mixed features [n, d] from the nearest class, from 0 to 1: half
        for d, which is what images of a class have on average."""
        white = _bounded(features) @ self.whitening.double().T
        apart = torch.cdist(white, self.means.double()).square().min(1).values
        return apart / (apart + len(self.whitening))


def _bounded(features: Tensor) -> Tensor:
    """Features [n, d] as they count, whether they are learnt from or asked about."""
    return features.double().nan_to_num().clamp(-FARTHEST, FARTHEST)


def energy(logits: Tensor) -> Tensor:
    """The energy [n] of logits [n, classes], from 0 to 1: the higher, the less any class claims the
    image (Liu et al. 2020, arXiv:2010.03759, eq. 4)."""
    value = -logits.double().logsumexp(1)
    return 0.5 + 0.5 * value / (value.abs() + ENERGY_SCALE)
