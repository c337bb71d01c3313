"""Whole-number sums over one site's test images, of which all that is known of the common model's
answers is made, where the images stay at the sites.

Each site answers two questions about the final model: the losses of a part of its images at all
temperatures that could be the best (`FitSums`), and, at the temperature that follows from the
losses of all sites, histograms of the other parts (`CountSums`), in which one image stands for
each group, such as a patient's. Their length depends on the classes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import torch
from torch import Tensor

from fedsight.core.sum_form import SumForm
from fedsight.evaluation.trust.answers import Answers
from fedsight.evaluation.trust.calibration import (
    MOST,
    OCTAVES,
    UNIT,
    best_temperature,
    brier,
    losses,
)
from fedsight.evaluation.trust.conformal import BINS, draws, histogram, scores
from fedsight.evaluation.trust.reliability import FINE, counted
from fedsight.evaluation.trust.scaling import Scaling
from fedsight.evaluation.trust.sets import Sets
from fedsight.evaluation.trust.unlike import energy

STEPS = 128  # temperatures of an octave: as near as `best_temperature` looks
EVERY = int(2 * OCTAVES * STEPS) + 1  # temperatures at which losses are summed
MOST_CLASSES = 100  # with more, the histograms of a site take more than 10 MB


@dataclass(frozen=True)
class FitSums:
    """The number of images [1], and the sums of their losses at each temperature [EVERY], int64."""

    images: Tensor
    losses: Tensor

    @classmethod
    def of(cls, fitted: Answers) -> Self:
        """Those of the answers to one site's images."""
        powers = [(at - (EVERY - 1) // 2) / STEPS for at in range(EVERY)]
        sums = losses(fitted.logits, fitted.labels, [2.0**power for power in powers])
        return cls(torch.tensor([len(fitted)]), sums)

    def __add__(self, other: FitSums) -> FitSums:
        return _added(self, other)

    @property
    def temperature(self) -> float:
        """The temperature with the least loss."""
        return best_temperature(self._at)

    def _at(self, temperatures: Sequence[float]) -> Tensor:
        middle = (EVERY - 1) // 2
        places = [round(math.log2(one) * STEPS) + middle for one in temperatures]
        return self.losses[torch.tensor(places)]

    def is_possible(self, most: int) -> bool:
        """Whether a model can have these on at most so many images."""
        images = int(self.images[0])
        return 0 <= images <= most and _within(self.losses, int(MOST * UNIT) * images)


@dataclass(frozen=True)
class CountSums:
    """What two parts of a site's images, `cover` and `tested`, add up to, all int64; of a group of
    images one stands for all.

    `images` [2] is how many images the groups of each part have: more than are summed, where any
    has several. `cover` and `tested` [classes, BINS] are histograms of the scores of the true
    class, by class; `held` [classes, BINS] of all classes' scores of the tested images; `energy_*`
    [BINS] of the energies; `reliable_*` [2, FINE, 3] what reliability is made of, before and after
    scaling; and `brier` [2] the sums of the tested images, before and after.
    """

    images: Tensor
    cover: Tensor
    tested: Tensor
    held: Tensor
    energy_cover: Tensor
    energy_tested: Tensor
    reliable_cover: Tensor
    reliable_tested: Tensor
    brier: Tensor

    @classmethod
    def of(cls, cover: Answers, tested: Answers, scaling: Scaling, method: str) -> Self:
        """Those of the answers to one site's images, each a group by itself, for sets by the score
        `method`."""
        return cls(
            torch.tensor([len(cover), len(tested)]),
            Sets.counted(method, scaling.shares(cover.logits), cover.labels, cover.logits),
            Sets.counted(method, scaling.shares(tested.logits), tested.labels, tested.logits),
            _held(method, scaling.shares(tested.logits), tested.logits),
            histogram(energy(cover.logits)),
            histogram(energy(tested.logits)),
            _reliable(cover, scaling),
            _reliable(tested, scaling),
            torch.tensor([brier(one, tested.labels) for one in _both(tested, scaling)]),
        )

    @property
    def groups(self) -> int:
        """How many groups, or images that belong to none, are summed."""
        return int(self.cover.sum() + self.tested.sum())

    @property
    def grouped(self) -> bool:
        """Whether any group has several images."""
        return self.groups < int(self.images.sum())

    def __add__(self, other: CountSums) -> CountSums:
        return _added(self, other)

    def is_possible(self, most: int) -> bool:
        """Whether a model can have these on at most so many images."""
        cover, tested = int(self.cover.sum()), int(self.tested.sum())
        if not (_within(self.images, most) and int(self.images.sum()) <= most):
            return False
        for summed, images in zip((cover, tested), self.images.tolist(), strict=True):
            if summed > images or bool(summed) != bool(images):
                return False
        counts = (self.cover, self.tested, self.held, self.energy_cover, self.energy_tested)
        if not all(_within(one, most) for one in counts):
            return False
        if not bool((self.held.sum(1) == tested).all()):
            return False
        if (int(self.energy_cover.sum()), int(self.energy_tested.sum())) != (cover, tested):
            return False
        both = ((self.reliable_cover, cover), (self.reliable_tested, tested))
        for sums, images in both:
            there, right, sure = sums.unbind(2)
            if not (_within(there, images) and bool((there.sum(1) == images).all())):
                return False
            if not bool(((right >= 0) & (right <= there)).all()):
                return False
            if not bool(((sure >= 0) & (sure <= there * UNIT)).all()):
                return False
        return _within(self.brier, 2 * UNIT * tested)


Sums = FitSums | CountSums
K = TypeVar("K", FitSums, CountSums)


def form(kind: type[Sums], classes: int) -> SumForm:
    """The form of sums of this kind, of a model with so many classes."""
    if kind is FitSums:
        return SumForm({"images": (1,), "losses": (EVERY,)}, {"losses": int(MOST * UNIT)})
    by_class, bins, reliable = (classes, BINS), (BINS,), (2, FINE, 3)
    each = ((2,), by_class, by_class, by_class, bins, bins, reliable, reliable, (2,))
    shapes = {one.name: shape for one, shape in zip(fields(CountSums), each, strict=True)}
    most = dict.fromkeys(("reliable_cover", "reliable_tested"), UNIT)
    return SumForm(shapes, {**most, "brier": 2 * UNIT})


def flat(sums: Sums) -> Tensor:
    """All numbers [size], one field after another."""
    return torch.cat([getattr(sums, one.name).reshape(-1) for one in fields(sums)])


def read(kind: type[K], numbers: Tensor, classes: int) -> K:
    """The sums that `numbers` [size] are, as `flat` makes them."""
    return kind(**form(kind, classes).read(numbers))


def _added(one: K, other: K) -> K:
    pairs = ((getattr(one, of.name), getattr(other, of.name)) for of in fields(one))
    return type(one)(*(mine + theirs for mine, theirs in pairs))


def _within(values: Tensor, most: int) -> bool:
    return bool(((values >= 0) & (values <= most)).all())


def _both(answers: Answers, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """The probabilities [n, classes] before and after scaling."""
    return torch.softmax(answers.logits.double(), 1), scaling.shares(answers.logits)


def _reliable(answers: Answers, scaling: Scaling) -> Tensor:
    before, after = _both(answers, scaling)
    said = answers.logits.argmax(1)
    labels = answers.labels
    return torch.stack([counted(before, labels), counted(after, labels, said)])


def _held(method: str, shares: Tensor, logits: Tensor) -> Tensor:
    each = scores(method, shares, draws(logits))
    found = [histogram(each[:, at]) for at in range(each.shape[1])]
    return torch.stack(found)
