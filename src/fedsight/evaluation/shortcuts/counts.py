"""What leaves a site: whole numbers, as many as classes and spots make, whatever its images are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

WHOLE = 1000  # an image's attribution is divided into so many parts


@dataclass(frozen=True)
class Looks:
    """Sums over a site's images of each class, all int64, with s spots.

    `hottest` [classes, s + 1]: for how many images each spot matters most; in the last column, for
    how many none matters. `mass` [classes, s]: the spots' parts of the attribution, of WHOLE for an
    image; `peak` [classes]: the largest such parts. `right` [classes]: images that the model gives
    their class; `lost` [classes, s]: those of them that lose it without the spot.
    """

    hottest: Tensor
    mass: Tensor
    peak: Tensor
    right: Tensor
    lost: Tensor

    @classmethod
    def none(cls, classes: int, spots: int) -> Looks:
        """Of no image."""
        sizes = ((classes, spots + 1), (classes, spots), (classes,), (classes,), (classes, spots))
        return cls(*(torch.zeros(size, dtype=torch.int64) for size in sizes))

    @classmethod
    def of(cls, drops: Tensor, labels: Tensor, kept: tuple[Tensor, Tensor], classes: int) -> Looks:
        """Of images with class numbers [n]: `drops` [n, s] of the class's log-odds without each
        spot, and whether the answer is the class with all spots [n] and without each [n, s]."""
        found = cls.none(classes, drops.shape[1])
        falls = torch.where(drops.isfinite().all(1, keepdim=True), drops, 0.0).double().clamp(min=0)
        total, (most, place) = falls.sum(1, keepdim=True), falls.max(1)
        place = torch.where(most > 0, place, drops.shape[1])
        parts = (WHOLE * falls / total.clamp(min=torch.finfo(falls.dtype).tiny)).round().long()
        found.hottest.index_put_((labels, place), torch.ones_like(place), accumulate=True)
        found.mass.index_add_(0, labels, parts)
        found.peak.index_add_(0, labels, parts.max(1).values)
        right, without = kept
        found.right.index_add_(0, labels, right.long())
        found.lost.index_add_(0, labels, (right[:, None] & ~without).long())
        return found

    def __add__(self, other: Looks) -> Looks:
        return Looks(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def images(self) -> Tensor:
        """How many images of each class [classes] were looked at."""
        return self.hottest.sum(1)


@dataclass(frozen=True)
class Pastes:
    """Of spots that were asked about [k], all int64: from how many images each was taken
    (`donors`), on how many without the class it was pasted (`tried`), how many were given the class
    then (`made`), and of how many the odds of the class at least doubled (`raised`)."""

    donors: Tensor
    tried: Tensor
    made: Tensor
    raised: Tensor

    @classmethod
    def none(cls, asked: int) -> Pastes:
        """Of no image."""
        return cls(*(torch.zeros(asked, dtype=torch.int64) for _ in fields(cls)))

    def __add__(self, other: Pastes) -> Pastes:
        return Pastes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def at(self, number: int) -> dict[str, int]:
        """The counts of one spot that was asked about."""
        return {f.name: int(getattr(self, f.name)[number]) for f in fields(self)}


def looks_together(each: Iterable[Looks], none: Looks) -> Looks:
    """The sum; `none` if there are no others."""
    return sum(each, start=none)


def pastes_together(each: Iterable[Pastes], none: Pastes) -> Pastes:
    """The sum; `none` if there are no others."""
    return sum(each, start=none)
