"""Exact sums: values are added as 64-bit fixed-point integers, so no order of addition matters.

A float32 value x becomes the integer round(x * 2^30). Scaling by a power of two is exact in
floating point and rounding is to even, so every machine makes the same integer; integers then
add exactly. What might not fit is refused before it is added, with the name of its site, so
nothing ever wraps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedsight.core.errors import SiteError

FRACTION_BITS = 30
LIMIT = 2**63 - 1
HEAVIEST = 2**40  # largest weight: no site has as many images
_SCALE = float(2**FRACTION_BITS)
_BLOCK = 1 << 16  # elements; intermediates of a block stay in the second-level cache


def encode(values: Tensor) -> Tensor:
    """float32 [n] -> int64 [n] with 30 fraction bits; the caller has checked the range."""
    return torch.mul(values, _SCALE).round_().to(torch.int64)


class ExactSum:
    """Weighted sum of at most `terms` float32 vectors [d], exact whatever the order.

    Each term may use an equal share of the 64 bits, so whether one is refused does not depend on
    the others. `total` may be a given int64 tensor [d] (shared memory, say); it is zeroed.
    """

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
        self._mean: Tensor | None = None

    def check_form(self, values: Tensor, weight: int, site: str) -> None:
        """Raise SiteError naming `site` for anything but a reply of the right form.

        Refused are: what is not a float32 vector of this length, a weight that is not a whole
        number from 1 to 2^40, and more terms than agreed.
        """
        # What comes from elsewhere may be anything, whatever its type is said to be.
        if not isinstance(values, Tensor) or values.dtype != torch.float32:
            came = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise SiteError(
                f"site '{site}' sent values of type {came}, not a tensor of {torch.float32}",
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

    def check(self, values: Tensor, weight: int, site: str) -> None:
        """Raise SiteError naming `site` unless `weight * values` may be added.

        Refused are, besides what `check_form` refuses, a NaN or infinity, and a value that is too
        large for its share of the sum.
        """
        self.check_form(values, weight, site)
        peak = _peak(values)
        if not peak < float("inf"):  # NaN fails this too
            raise SiteError(
                f"site '{site}' sent an update that is not finite (NaN or infinity)",
                "its training diverged or its data are broken: lower train.lr, set train.clip or "
                "look at its images; with rounds.quorum a run goes on without such replies",
            )
        if not self._fits(peak, weight):
            raise SiteError(
                f"the update of site '{site}' (largest value {peak:.3g}, weight {weight}) would "
                "leave the 64-bit range of the exact sum",
                "its training diverged: lower train.lr or set train.clip",
            )

    def add(self, values: Tensor, weight: int, site: str) -> None:
        """Add `weight * values`; either all of it or, with a SiteError, nothing."""
        self.check_form(values, weight, site)
        for part in _blocks(len(values)):
            block = values[part]
            peak = _peak(block)
            if not (peak < float("inf") and self._fits(peak, weight)):
                self._subtract(values[: part.start], weight)
                self.check(values, weight, site)
            # One pass: the block is in the cache when it is checked, converted and added.
            self.total[part].add_(encode(block), alpha=weight)
        self.weight += weight
        self.count += 1

    def take_back(self, values: Tensor, weight: int) -> None:
        """Undo the last `add`."""
        self._subtract(values, weight)
        self.weight -= weight
        self.count -= 1

    def _subtract(self, values: Tensor, weight: int) -> None:
        for part in _blocks(len(values)):
            self.total[part].sub_(encode(values[part]), alpha=weight)

    def _fits(self, peak: float, weight: int) -> bool:
        return weight * (int(peak * _SCALE) + 1) <= LIMIT // self.terms

    def merge(self, other: ExactSum) -> None:
        """Add another sum over other sites of the same cohort."""
        if self.count + other.count > self.terms:
            raise SiteError(
                f"{self.count + other.count} replies in a sum of {self.terms}",
                "a site answered twice, or the cohort is larger than announced",
            )
        self.total.add_(other.total)
        self.weight += other.weight
        self.count += other.count

    def mean(self) -> Tensor:
        """Weighted mean, float64 [d]; zero when nothing was added.

        It takes the sum's place in memory, and nothing can be added any more before `clear`: these
        are the largest vectors there are.
        """
        if self._mean is None:
            mean, divisor = self.total.view(torch.float64), _SCALE * max(self.weight, 1)
            for part in _blocks(len(mean)):
                mean[part] = self.total[part].to(torch.float64).div_(divisor)
            self._mean, self.terms = mean, self.count
        return self._mean


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, size, _BLOCK))


def _peak(values: Tensor) -> float:
    """The largest absolute value; NaN if there is one, 0 for no values."""
    if not len(values):
        return 0.0
    low, high = torch.aminmax(values)  # ten times as fast as a maximum norm
    return max(-float(low), float(high))
