"""Exact sums: values are added as 64-bit fixed-point integers, so no order of addition matters.

A float32 value x becomes the integer round(x * 2^30). Scaling by a power of two is exact in
floating point and rounding is to even, so every machine makes the same integer; integers then
add exactly. What might not fit is refused before it is added, with the name of its site, so
nothing ever wraps.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.sums import LIMIT, VectorSum, blocks

FRACTION_BITS = 30
_SCALE = float(2**FRACTION_BITS)


def encode(values: Tensor) -> Tensor:
    """float32 [n] -> int64 [n] with 30 fraction bits; the caller has checked the range."""
    return torch.mul(values, _SCALE).round_().to(torch.int64)


class ExactSum(VectorSum):
    """Weighted sum of at most `terms` float32 vectors [d], exact whatever the order.

    Each term may use an equal share of the 64 bits, so whether one is refused does not depend on
    the others.
    """

    dtype: ClassVar[torch.dtype] = torch.float32

    def filled(self, terms: int, count: int, weight: int) -> None:
        """`total` now holds the sum of `count` of at most `terms` replies."""
        super().filled(terms, count, weight)
        self._mean: Tensor | None = None

    def check(self, values: Tensor, weight: int, site: str) -> None:
        """Raise SiteError naming `site` unless `weight * values` may be added.

        Refused are, besides what `check_form` refuses, a NaN or infinity, and a value that is too
        large for its share of the sum.
        """
        self.check_form(values, weight, site)
        peak = largest(values)
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

    def _admits(self, block: Tensor, weight: int) -> bool:
        peak = largest(block)
        return peak < float("inf") and self._fits(peak, weight)

    def _add(self, total: Tensor, block: Tensor, weight: int) -> None:
        total.add_(encode(block), alpha=weight)

    def _fits(self, peak: float, weight: int) -> bool:
        return weight * (int(peak * _SCALE) + 1) <= LIMIT // self.terms

    def mean(self) -> Tensor:
        """Weighted mean, float64 [d]; zero when nothing was added.

        It takes the sum's place in memory, and nothing can be added any more before `clear`: these
        are the largest vectors there are.
        """
        if self._mean is None:
            mean, divisor = self.total.view(torch.float64), _SCALE * max(self.weight, 1)
            for part in blocks(len(mean)):
                mean[part] = self.total[part].to(torch.float64).div_(divisor)
            self._mean, self.terms = mean, self.count
        return self._mean


def largest(values: Tensor) -> float:
    """The largest absolute value; NaN if there is one, 0 for no values."""
    if not len(values):
        return 0.0
    low, high = torch.aminmax(values)  # ten times as fast as a maximum norm
    return max(-float(low), float(high))
