"""Sums of vectors in 64-bit integers: what all exact sums have in common.

A vector is checked, converted and added block by block. If a block is refused, those before it are
taken back, so a vector is added whole or not at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedsight.core.errors import SiteError

LIMIT = 2**63 - 1
HEAVIEST = 2**40  # largest weight: no site has as many images
BLOCK = 1 << 16  # elements; intermediates of a block stay in the second-level cache


class VectorSum(ABC):
    """Sum of at most `terms` vectors [d] of one type.

    `total` may be a given int64 tensor [d] (shared memory, say); it is zeroed.
    """

    dtype: ClassVar[torch.dtype]  # of the vectors that are added

    def __init__(self, size: int, terms: int, total: Tensor | None = None) -> None:
        self.total = torch.empty(size, dtype=torch.int64) if total is None else total
        self.clear(terms)

    def clear(self, terms: int) -> None:
        """Start again from nothing."""
        self.total.zero_()
        self.filled(terms, 0, 0)

    def filled(self, terms: int, count: int, weight: int) -> None:
        """`total` now holds the sum of `count` of at most `terms` replies."""
        self.terms, self.count, self.weight = terms, count, weight

    def check_form(self, values: Tensor, weight: int, site: str) -> None:
        """Raise SiteError naming `site` for anything but a reply of the right form.

        Refused are: what is not a vector of this type and length, a weight that is not a whole
        number from 1 to 2^40, and more terms than agreed.
        """
        # What comes from elsewhere may be anything, whatever its type is said to be.
        if not isinstance(values, Tensor) or values.dtype != self.dtype:
            came = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise SiteError(
                f"site '{site}' sent values of type {came}, not a tensor of {self.dtype}",
                "the site runs another version of FedSight; install the same one everywhere",
            )
        if values.shape != self.total.shape:
            raise SiteError(
                f"site '{site}' sent {tuple(values.shape)} values, not {tuple(self.total.shape)}",
                "the site runs another model; compare the fingerprints",
            )
        if type(weight) is not int or not 0 < weight <= HEAVIEST:
            raise SiteError(
                f"site '{site}' has weight {weight!r}, not a whole number from 1 to {HEAVIEST}",
                "a weight is a site's number of images, or 1; one that takes part needs images",
            )
        if self.count >= self.terms:
            raise SiteError(
                f"site '{site}' would be term {self.count + 1} of a sum of {self.terms}",
                "a site answered twice, or the cohort is larger than announced",
            )

    @abstractmethod
    def check(self, values: Tensor, weight: int, site: str) -> None:
        """Raise SiteError naming `site` unless `values` may be added."""

    def add(self, values: Tensor, weight: int, site: str) -> None:
        """Add a reply's values; either all of them or, with a SiteError, nothing."""
        self.check_form(values, weight, site)
        values = values.to(self.total.device)
        for part in self._blocks():
            block = values[part]
            if not self._admits(block, weight):
                self._subtract(values[: part.start], weight)
                self.check(values, weight, site)
            # One pass: the block is in the cache when it is checked, converted and added.
            self._add(self.total[part], block, weight)
        self.weight += weight
        self.count += 1

    def take_back(self, values: Tensor, weight: int) -> None:
        """Undo the last `add`."""
        self._subtract(values, weight)
        self.weight -= weight
        self.count -= 1

    def merge(self, other: Self) -> None:
        """Add another sum over other sites of the same cohort."""
        if self.count + other.count > self.terms:
            raise SiteError(
                f"{self.count + other.count} replies in a sum of {self.terms}",
                "a site answered twice, or the cohort is larger than announced",
            )
        self.total.add_(other.total)
        self.weight += other.weight
        self.count += other.count

    @abstractmethod
    def _admits(self, block: Tensor, weight: int) -> bool:
        """Whether `check` accepts this block of the values."""

    @abstractmethod
    def _add(self, total: Tensor, block: Tensor, weight: int) -> None:
        """Add a block, in place; a negative weight subtracts it."""

    def _subtract(self, values: Tensor, weight: int) -> None:
        values = values.to(self.total.device)
        for part in self._blocks(len(values)):
            self._add(self.total[part], values[part], -weight)

    def _blocks(self, size: int | None = None) -> Iterator[slice]:
        """The slices that a vector is processed in; on a GPU, where each costs a launch, one."""
        size = len(self.total) if size is None else size
        return blocks(size) if self.total.device.type == "cpu" else iter([slice(0, size)])


def blocks(size: int) -> Iterator[slice]:
    """The slices that a vector of `size` values is processed in."""
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))
