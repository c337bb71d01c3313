"""Exact sums: values are added as 64-bit fixed-point integers, so no order of addition matters.

A float32 value x becomes the integer round(x * 2^30). Scaling by a power of two is exact in
floating point and rounding is to even, so every machine makes the same integer; integers then
add exactly. A bound on the largest possible sum is kept beside it in Python integers: what
might not fit is refused before it is added, so nothing ever wraps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsight.core.errors import SiteError

FRACTION_BITS = 30
LIMIT = 2**63 - 1
_SCALE = float(2**FRACTION_BITS)
_BLOCK = 1 << 15  # elements; intermediates of a block stay in the second-level cache


def encode(values: Tensor) -> Tensor:
    """float32 [n] -> int64 [n] with 30 fraction bits; the caller has checked the range."""
    return torch.mul(values, _SCALE).round_().to(torch.int64)


class ExactSum:
    """Weighted sum of float32 vectors [d], exact whatever the order.

    `total` may be a given int64 tensor [d] (shared memory, say); it is zeroed.
    """

    def __init__(self, size: int, total: Tensor | None = None) -> None:
        self.total = torch.zeros(size, dtype=torch.int64) if total is None else total
        self.clear()

    def clear(self) -> None:
        """Start again from nothing."""
        self.total.zero_()
        self.weight = 0
        self.bound = 0  # no element of `total` can be larger in magnitude

    def check(self, values: Tensor, weight: int, site: str) -> int:
        """The new bound if `values` were added; SiteError if they must not be.

        Raises SiteError naming `site` when a value is NaN or infinite, when the weight is not
        positive, or when the sum might leave 64 bits.
        """
        if values.shape != self.total.shape:
            raise SiteError(
                f"site '{site}' sent {tuple(values.shape)} values, not {tuple(self.total.shape)}",
                "the site runs another model; compare the fingerprints",
            )
        if weight <= 0:
            raise SiteError(
                f"site '{site}' has weight {weight}", "a site that takes part needs samples"
            )
        low, high = (float(value) for value in torch.aminmax(values)) if len(values) else (0.0, 0.0)
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN fails both
            raise SiteError(
                f"site '{site}' sent an update that is not finite (NaN or infinity)",
                "its training diverged or its data are broken: lower train.lr, set train.clip, or "
                "look at its images; rounds.on_failure = 'skip' goes on without such replies",
            )
        peak = int(max(abs(low), abs(high)) * _SCALE) + 1
        bound = self.bound + weight * peak
        if bound > LIMIT:
            raise SiteError(
                f"the update of site '{site}' (largest value {max(abs(low), abs(high)):.3g}, weight "
                f"{weight}) would leave the 64-bit range of the exact sum",
                "its training diverged: lower train.lr or set train.clip",
            )
        return bound

    def add(self, values: Tensor, weight: int, site: str) -> None:
        """Add `weight * values`; either all of it or, with a SiteError, nothing."""
        bound = self.check(values, weight, site)
        for start in range(0, len(values), _BLOCK):
            part = slice(start, start + _BLOCK)
            self.total[part].add_(encode(values[part]), alpha=weight)
        self.weight += weight
        self.bound = bound

    def merge(self, other: ExactSum) -> None:
        """Add another sum; SiteError if the two might leave 64 bits together."""
        if self.bound + other.bound > LIMIT:
            raise SiteError(
                "the cohort's updates together would leave the 64-bit range of the exact sum",
                "training diverged: lower train.lr or set train.clip",
            )
        self.total.add_(other.total)
        self.weight += other.weight
        self.bound += other.bound

    def mean(self) -> Tensor:
        """Weighted mean, float64 [d]; zero when nothing was added."""
        return self.total.to(torch.float64).div_(_SCALE * max(self.weight, 1))
