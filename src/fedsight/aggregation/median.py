"""The coordinate-wise median of a cohort's updates, which a few sites cannot shift at will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Never

import torch
from torch import Tensor

from fedsight.aggregation.base import Aggregation, aggregations
from fedsight.aggregation.mean import decoded, scaled
from fedsight.core.errors import FedSightError, SiteError
from fedsight.core.fixedpoint import ExactSum
from fedsight.core.types import PartSpecs, Payload

_BLOCK = 1 << 14  # coordinates sorted at once


@aggregations.add("median", paper="Yin et al. 2018, Algorithm 1, option I")
class Median(Aggregation):
    """The unweighted median of the updates in each coordinate.

    It tolerates arbitrary updates from fewer than half of the sites. It needs to see each site's
    update, and memory for all updates of a cohort.
    """

    needs_replies: ClassVar[bool] = True

    def aggregator(
        self, specs: PartSpecs, terms: int, memory: Mapping[str, Tensor] | None = None
    ) -> ReplyRows:
        """Rows for the replies, in `memory` if it is given."""
        return ReplyRows(specs, terms, memory)


class ReplyRows:
    """The replies of a round as rows [replies, d] of each part, and their median."""

    def __init__(
        self, specs: PartSpecs, terms: int, memory: Mapping[str, Tensor] | None = None
    ) -> None:
        self.specs = specs
        self._checks = {part: ExactSum(spec.values, 1) for part, spec in specs.items()}
        self._memory = memory
        self.clear(terms)

    def clear(self, terms: int) -> None:
        """Reset for a new round."""
        self.terms, self.count, self.weight = terms, 0, 0
        self._others: list[ReplyRows] = []
        if self._memory is None:  # pages are allocated when first written to
            self._rows = {p: torch.empty(terms, spec.values) for p, spec in self.specs.items()}
        else:
            self._rows = dict(self._memory)

    def add(self, payload: Payload, weight: int, site: str, factor: float = 1.0) -> None:
        """Keep a reply's payload; if any part is rejected, raise SiteError and keep nothing."""
        values = scaled(self.specs, decoded(self.specs, payload, site), factor)
        for part, check in self._checks.items():
            check.check(values[part], weight, site)
        if self.count >= min(self.terms, *(len(rows) for rows in self._rows.values())):
            raise SiteError(
                f"site '{site}' would be reply {self.count + 1} of a round of {self.terms}",
                "a site answered twice, or the cohort is larger than announced",
            )
        for part, rows in self._rows.items():
            rows[self.count].copy_(values[part])
        self.count += 1
        self.weight += weight

    def merge(self, other: ReplyRows) -> None:
        """Add the replies of other sites of the same cohort."""
        self._others.append(other)
        self.count += other.count
        self.weight += other.weight

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The rows [terms, d] of each part."""
        return self._rows

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Note that the first `count` rows now hold replies."""
        self.terms, self.count, self.weight, self._others = terms, count, weight, []

    def mean(self) -> dict[str, Tensor]:
        """The median of each coordinate, float64 [d]; the mean of the middle two if even."""
        return {part: self._median(part, spec.values) for part, spec in self.specs.items()}

    def plain(self) -> Never:
        """A median is not a sum."""
        raise FedSightError(
            "noise cannot be added: a median is not a sum",
            "set aggregation.name = 'mean', or remove [privacy]",
        )

    def integers(self) -> dict[str, Tensor]:
        """None: integer parts are summed, and this rule forms no sum."""
        return {}

    def _median(self, part: str, values: int) -> Tensor:
        out = torch.zeros(values, dtype=torch.float64)
        if not self.count:
            return out
        own = self.count - sum(other.count for other in self._others)
        rows = [self._rows[part][:own], *(o._rows[part][: o.count] for o in self._others)]
        for start in range(0, values, _BLOCK):
            block = torch.cat([one[:, start : start + _BLOCK] for one in rows]).sort(0).values
            middle = block[(self.count - 1) // 2].double() + block[self.count // 2].double()
            out[start : start + _BLOCK] = middle / 2
        return out
