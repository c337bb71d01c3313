"""Sums of integers: what sites send as int64 is added as it is, without weight, clip or rounding.

Such statistics (counts, or sums of products of quantised features) are exact only if their sum is.
Each site may use an equal share of the 64 bits, or the bound that is stated for the part if that is
less. So a sum never leaves int64, and whether a reply is refused does not depend on the others.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.sums import LIMIT, VectorSum


def share_of(bound: int | None, terms: int) -> int:
    """The largest absolute value of each of `terms` sites, whose part has this bound."""
    share = LIMIT // max(terms, 1)
    return share if bound is None else min(bound, share)


def check_share(values: Tensor, share: int, site: str) -> None:
    """Raise SiteError naming `site` if the absolute value of any of `values` exceeds `share`."""
    if peak(values) > share:
        raise SiteError(
            f"site '{site}' sent the integer {_farthest(values):,}, but each site may send at most "
            f"{share:,} in absolute value: the sum might leave 64 bits",
            "correct the bound that the algorithm states for this part, or send smaller integers",
        )


class IntegerSum(VectorSum):
    """Sum of at most `terms` int64 vectors [d]. Weights are counted but change nothing.

    `bound`: the largest absolute value that a site may send; None: its share of 64 bits.
    """

    dtype: ClassVar[torch.dtype] = torch.int64

    def __init__(
        self, size: int, bound: int | None, terms: int, total: Tensor | None = None
    ) -> None:
        self._bound = bound
        super().__init__(size, terms, total)

    def check(self, values: Tensor, weight: int, site: str) -> None:
        """Raise SiteError naming `site` for another form, and for a value above the bound."""
        self.check_form(values, weight, site)
        check_share(values, self._share, site)

    @property
    def _share(self) -> int:
        return share_of(self._bound, self.terms)

    def _admits(self, block: Tensor, weight: int) -> bool:
        return peak(block) <= self._share

    def _add(self, total: Tensor, block: Tensor, weight: int) -> None:
        total.add_(block, alpha=1 if weight > 0 else -1)


def peak(values: Tensor) -> int:
    """The largest absolute value, which is 2^63 for the least int64; 0 for no values."""
    return abs(_farthest(values))


def _farthest(values: Tensor) -> int:
    if not len(values):
        return 0
    low, high = (int(edge) for edge in torch.aminmax(values))
    return low if -low > high else high
