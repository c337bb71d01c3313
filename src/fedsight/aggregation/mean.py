"""The weighted mean of a cohort's updates, as one exact sum per payload part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.fixedpoint import FRACTION_BITS, ExactSum
from fedsight.core.types import Payload


@dataclass
class PayloadSum:
    """Exact sums of all parts of the payloads; a reply is added whole or not at all."""

    sums: Mapping[str, ExactSum]

    @classmethod
    def of(cls, sizes: Mapping[str, int], terms: int) -> PayloadSum:
        """Empty sums for parts of the given lengths and at most `terms` replies."""
        return cls({part: ExactSum(size, terms) for part, size in sizes.items()})

    def clear(self, terms: int) -> None:
        """Start again from nothing."""
        for total in self.sums.values():
            total.clear(terms)

    def add(self, payload: Payload, weight: int, site: str) -> None:
        """Add a reply's payload; SiteError, and nothing added, if any part is refused.

        Refused are a missing part, one that nobody asked for, and what `ExactSum.check` refuses.
        """
        if payload.keys() != self.sums.keys():
            came, wanted = sorted(map(str, payload)), sorted(self.sums)
            raise SiteError(
                f"site '{site}' sent the parts {came}, not {wanted}",
                "the site runs another algorithm; compare the fingerprints",
            )
        for part, total in self.sums.items():
            total.check(payload[part], weight, site)
        for part, total in self.sums.items():
            total.add_checked(payload[part], weight)

    def merge(self, other: PayloadSum) -> None:
        """Add the sums over other sites of the same cohort."""
        for part, total in self.sums.items():
            total.merge(other.sums[part])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it has added so far, part by part."""
        return {part: total.total for part, total in self.sums.items()}

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Its tensors now hold the sum of `count` of at most `terms` replies."""
        for total in self.sums.values():
            total.filled(terms, count, weight)

    @property
    def count(self) -> int:
        """Replies added."""
        return next(iter(self.sums.values())).count

    @property
    def weight(self) -> int:
        """Their total weight."""
        return next(iter(self.sums.values())).weight

    def mean(self) -> dict[str, Tensor]:
        """Weighted mean of each part, float64, in the sums' memory (`ExactSum.mean`)."""
        return {part: total.mean() for part, total in self.sums.items()}

    def plain(self) -> dict[str, Tensor]:
        """Weighted sum of each part, float64."""
        return {
            part: total.total.double() / 2.0**FRACTION_BITS for part, total in self.sums.items()
        }
