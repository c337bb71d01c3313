"""From scores to probabilities that are right: scalings, fitted to held-out images by sums.

Each is made from sums of whole numbers over images, so who has which of them does not matter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.evaluation.trust.calibration import MOST, UNIT, best_temperature, calibrated, losses
from fedsight.evaluation.trust.reliability import FINE, places

STEPS = 25  # of Newton's method, at most; mostly it ends after some five
HALVED = 30  # times that a step is halved before the end is reached
STRENGTH = 1e-3  # of what draws a vector scaling towards one temperature, for each image
LARGEST = 1e6  # of a factor or an offset that a file may hold


class Scaling(ABC):
    """How probabilities are made of a model's scores. They may rank classes otherwise: what a model
    answers is still the class of its highest score."""

    kind: ClassVar[str]
    most: ClassVar[int] = 1 << 30  # classes that it is made for

    @classmethod
    @abstractmethod
    def fewest(cls, classes: int) -> int:
        """The number of images that it takes to fit one."""

    @classmethod
    @abstractmethod
    def fitted(cls, logits: Tensor, labels: Tensor) -> Self:
        """That with the least loss on images with logits [n, classes] and class numbers [n]."""

    @abstractmethod
    def shares(self, logits: Tensor) -> Tensor:
        """Probabilities [n, classes] of logits [n, classes], float64."""

    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """Its values for JSON, without its kind."""

    @classmethod
    @abstractmethod
    def of(cls, plain: Mapping[str, Any], classes: int) -> Self:
        """The scaling of a model of so many `classes` that `plain` describes; KeyError, TypeError
        or ValueError if it describes none."""


@dataclass(frozen=True)
class TemperatureScaling(Scaling):
    """One temperature for all scores (Guo et al. 2017, arXiv:1706.04599, section 4.2)."""

    temperature: float = 1.0
    kind: ClassVar[str] = "temperature"

    @classmethod
    def fewest(cls, classes: int) -> int:
        """Twenty: it is one number."""
        return 20

    @classmethod
    def fitted(cls, logits: Tensor, labels: Tensor) -> Self:
        """By the sums of the losses at a few temperatures."""
        return cls(best_temperature(lambda asked: losses(logits, labels, asked)))

    def shares(self, logits: Tensor) -> Tensor:
        """softmax(z / T)."""
        return calibrated(logits, self.temperature)

    def plain(self) -> dict[str, Any]:
        """The temperature."""
        return {"temperature": self.temperature}

    @classmethod
    def of(cls, plain: Mapping[str, Any], classes: int) -> Self:
        """A temperature above 0."""
        found = float(plain["temperature"])
        if not (math.isfinite(found) and found > 0):
            raise ValueError(f"the temperature is {found}")
        return cls(found)


@dataclass(frozen=True)
class VectorScaling(Scaling):
    """A factor and an offset for the score of each class (Guo et al. 2017, section 4.2), after one
    temperature and one `centre` for all.

    The squares of what they differ from 1 and 0 are added to the loss, so that a class with few
    images stays near the temperature.
    """

    temperature: float
    centre: float
    factors: Tensor  # [classes] float64, above 0
    offsets: Tensor  # [classes]
    kind: ClassVar[str] = "vector"
    most: ClassVar[int] = 256  # its curvature is a matrix of twice as many rows

    @classmethod
    def fewest(cls, classes: int) -> int:
        """Ten for each class: it has two numbers for each."""
        return 10 * classes

    @classmethod
    def fitted(cls, logits: Tensor, labels: Tensor) -> Self:
        """By Newton's method: in each step the gradients and curvatures of images are summed, and
        the step is halved until the sum of the losses falls."""
        heat = TemperatureScaling.fitted(logits, labels).temperature
        middle = int(_units(logits.double()).sum()) / UNIT / logits.numel()
        z, classes, weight = _placed(logits, heat, middle), logits.shape[1], STRENGTH * len(labels)
        start = torch.cat([torch.ones(classes), torch.zeros(classes)]).double()

        def loss(at: Tensor) -> float:
            summed = int(losses(z * at[:classes] + at[classes:], labels, [1.0])) / UNIT
            return summed + weight / 2 * float((at - start).square().sum())

        found, least = start.clone(), loss(start)
        for _ in range(STEPS):
            gradient, curvature = sloped(z, labels, found)
            slope = gradient.double() / UNIT + weight * (found - start)
            matrix = curvature.double() / UNIT + weight * torch.eye(2 * classes, dtype=slope.dtype)
            step = torch.linalg.solve(matrix, slope)
            for _ in range(HALVED):
                after = found - step
                if bool((after[:classes] > 0).all()) and (lower := loss(after)) < least:
                    found, least = after, lower
                    break
                step = step / 2
            else:
                break
        return cls(heat, middle, found[:classes], found[classes:])

    def shares(self, logits: Tensor) -> Tensor:
        """softmax(w (z - centre) / T + b)."""
        z = _placed(logits, self.temperature, self.centre)
        return torch.softmax(z * self.factors + self.offsets, dim=1)

    def plain(self) -> dict[str, Any]:
        """Temperature, centre, factors and offsets."""
        both = {"factors": self.factors.tolist(), "offsets": self.offsets.tolist()}
        return {"temperature": self.temperature, "centre": self.centre, **both}

    @classmethod
    def of(cls, plain: Mapping[str, Any], classes: int) -> Self:
        """As many factors and offsets as classes, the factors above 0."""
        factors, offsets = (_numbers(plain[key], classes) for key in ("factors", "offsets"))
        if not bool((factors > 0).all()):
            raise ValueError("a factor is not above 0")
        (centre,) = _numbers([plain["centre"]], 1).tolist()
        heat = TemperatureScaling.of(plain, classes).temperature
        return cls(heat, centre, factors, offsets)


def _placed(logits: Tensor, temperature: float, centre: float) -> Tensor:
    """Logits [n, classes] around 0 and of the size that a temperature gives them, float64. Within
    -MOST and MOST, so that sums of their products are exact."""
    return ((logits.double() - centre) / temperature).clamp(-MOST, MOST)


def sloped(z: Tensor, labels: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over images of gradient and second derivatives of the logarithmic loss, by the
    factors and offsets `at` [2 * classes] of scores z [n, classes] from -MOST to MOST: int64
    [2 * classes] and [2 * classes, 2 * classes], in units of 1 / UNIT.

    The products of the second are of numbers with 12 bits after the point, so that their sum is
    exact in float64; Newton's method gets to the same end with them.
    """
    classes = z.shape[1]
    shares = torch.softmax(z * at[:classes] + at[classes:], dim=1)
    off = shares - F.one_hot(labels, classes)
    gradient = _units(torch.cat([off * z, off], dim=1)).sum(0)
    parts = (torch.cat([shares * z, shares], dim=1) * math.isqrt(UNIT)).round()
    products = (parts.T @ parts).to(torch.int64)
    curved = [_units(shares * z**power).sum(0).diag() for power in (2, 1, 0)]
    own = torch.cat([torch.cat(curved[:2], dim=1), torch.cat(curved[1:], dim=1)])
    return gradient, own - products


@dataclass(frozen=True)
class IsotonicScaling(Scaling):
    """For each class a step function that only rises, from its probability at one temperature to
    how often it is right; then all are divided by their sum (Zadrozny and Elkan 2002)."""

    temperature: float
    steps: Tensor  # [classes, FINE] float64, rising
    kind: ClassVar[str] = "isotonic"
    most: ClassVar[int] = 100  # of more, no class has enough images

    @classmethod
    def fewest(cls, classes: int) -> int:
        """Fifty for each class: it has no form that a few images could fill in."""
        return 50 * classes

    @classmethod
    def fitted(cls, logits: Tensor, labels: Tensor) -> Self:
        """By the histograms of all classes' probabilities, and of the true ones."""
        temperature = TemperatureScaling.fitted(logits, labels).temperature
        shares, classes = calibrated(logits, temperature), logits.shape[1]
        truth = F.one_hot(labels, classes)
        every, right = (torch.zeros(classes, FINE, dtype=torch.int64) for _ in range(2))
        for at in range(classes):
            where = places(shares[:, at])
            every[at].index_add_(0, where, torch.ones_like(where))
            right[at].index_add_(0, where, truth[:, at])
        rows = [
            rising(one.tolist(), all_of.tolist()) for one, all_of in zip(right, every, strict=True)
        ]
        return cls(temperature, torch.tensor(rows, dtype=torch.float64))

    def shares(self, logits: Tensor) -> Tensor:
        """The steps at each probability, over their sum."""
        before = calibrated(logits, self.temperature)
        found = torch.stack(
            [steps[places(before[:, at])] for at, steps in enumerate(self.steps)], dim=1
        )
        return found / found.sum(1, keepdim=True)

    def plain(self) -> dict[str, Any]:
        """The temperature, and where each class's function rises: pairs of a bin and a value."""
        return {
            "temperature": self.temperature,
            "steps": [
                [[0, float(row[0])]]
                + [[at, float(row[at])] for at in range(1, FINE) if row[at] != row[at - 1]]
                for row in self.steps
            ],
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any], classes: int) -> Self:
        """Steps for as many classes."""
        temperature = TemperatureScaling.of(plain, classes).temperature
        if len(plain["steps"]) != classes:
            raise ValueError("it is not of as many classes as the run")
        rows = torch.zeros(classes, FINE, dtype=torch.float64)
        for row, pairs in zip(rows, plain["steps"], strict=True):
            for at, value in pairs:
                if type(at) is not int or not (0 <= at < FINE and 0 < float(value) < 1):
                    raise ValueError("a step is not a probability in a bin")
                row[at:] = float(value)
        if not bool((rows > 0).all() and (rows.diff(dim=1) >= 0).all()):
            raise ValueError("a step function has no beginning, or falls")
        return cls(temperature, rows)


def rising(right: Sequence[int], images: Sequence[int]) -> list[float]:
    """The rising values [bins] nearest to the shares `right` / `images` of bins, by least squares
    weighted by images: pools adjacent violators (Ayer et al. 1955).

    A bin without images has the value of the one before, or of the first that has some. To each
    pool an image is added that is half right, so that no value is 0 or 1.
    """
    pools: list[list[int]] = [[0, 0, 0]]  # right, images, bins
    for hit, count in zip(right, images, strict=True):
        if not (count and pools[-1][1]):  # the first images, or none
            pools[-1] = [pools[-1][0] + hit, pools[-1][1] + count, pools[-1][2] + 1]
            continue
        pools.append([hit, count, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [one + other for one, other in zip(pools[-1], last, strict=True)]
    found, highest = list[float](), 0.0
    for hit, count, bins in pools:
        highest = max(highest, (hit + 0.5) / (count + 1))
        found += [highest] * bins
    return found


SCALINGS: Mapping[str, type[Scaling]] = {
    one.kind: one for one in (TemperatureScaling, VectorScaling, IsotonicScaling)
}


def fitted(kind: str, logits: Tensor, labels: Tensor) -> tuple[Scaling, str]:
    """A scaling of this kind, and an empty text; or a simpler one, and why: a temperature, and 1
    where there are too few images even for that."""
    chosen, classes = SCALINGS[kind], logits.shape[1]
    if classes > chosen.most:
        reason = _many(kind, chosen.most)
    elif len(labels) < (fewest := chosen.fewest(classes)):
        reason = few(len(labels), fewest)
    else:
        return chosen.fitted(logits, labels), ""
    if len(labels) < TemperatureScaling.fewest(classes):
        return TemperatureScaling(), reason
    return TemperatureScaling.fitted(logits, labels), reason


def few(images: int, fewest: int) -> str:
    """Why something is not made of so many images."""
    return f"{images} held-out inputs are too few: it needs {fewest}"


def _many(kind: str, most: int) -> str:
    return f"{kind} scaling is made for at most {most} classes"


def plain(scaling: Scaling) -> dict[str, Any]:
    """A scaling as values for JSON."""
    return {"kind": scaling.kind, **scaling.plain()}


def of(known: Mapping[str, Any], classes: int) -> Scaling:
    """The scaling that `known` is of; KeyError, TypeError or ValueError if it is of none."""
    return SCALINGS[known["kind"]].of(known, classes)


def _units(values: Tensor) -> Tensor:
    return (values * UNIT).round().to(torch.int64)


def _numbers(values: Any, count: int) -> Tensor:
    found = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if len(found) != count or not bool((found.abs() <= LARGEST).all()):
        raise ValueError(f"expected {count} numbers of at most {LARGEST:g}")
    return found
