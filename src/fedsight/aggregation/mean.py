"""The weighted mean of a cohort's updates, as one exact sum per payload part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedsight.aggregation.base import Aggregation, aggregations
from fedsight.core.errors import SiteError
from fedsight.core.fixedpoint import FRACTION_BITS, ExactSum, largest
from fedsight.core.integers import IntegerSum
from fedsight.core.sums import VectorSum
from fedsight.core.types import PartSpecs, Payload


@aggregations.add("mean", paper="McMahan et al. 2017, Algorithm 1")
class Mean(Aggregation):
    """The mean of the updates, weighted by `rounds.weighting`; exact, whatever the order."""

    def aggregator(
        self, specs: PartSpecs, terms: int, memory: Mapping[str, Tensor] | None = None
    ) -> ExactMean:
        """Exact sums, in `memory` if it is given."""
        known = memory or {}
        floats, integers = parted(specs)
        return ExactMean(
            specs,
            {part: ExactSum(s.values, terms, known.get(part)) for part, s in floats.items()},
            {
                part: IntegerSum(s.values, s.bound, terms, known.get(part))
                for part, s in integers.items()
            },
        )


@dataclass
class ExactMean:
    """Exact sums of all parts of the payloads; a reply is added whole or not at all."""

    specs: PartSpecs
    sums: Mapping[str, ExactSum]
    counts: Mapping[str, IntegerSum] = field(default_factory=dict)  # of the integer parts
    # The largest absolute value of each reply that was added here, by part and site. One for all
    # parts would be that of a scalar, beside which no update is far out.
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def _all(self) -> dict[str, VectorSum]:
        return {**self.sums, **self.counts}

    def clear(self, terms: int) -> None:
        """Start again from nothing."""
        self.peaks.clear()
        for total in self._all.values():
            total.clear(terms)

    def add(self, payload: Payload, weight: int, site: str, factor: float = 1.0) -> None:
        """Add a reply's payload; SiteError, and nothing added, if any part is refused.

        Refused are a missing part, one that nobody asked for, and what `check` of its sum refuses.
        """
        values = scaled(self.specs, decoded(self.specs, payload, site), factor)
        sums, added = self._all, list[str]()
        try:
            for part, total in sums.items():
                total.add(values[part], weight, site)
                added.append(part)
        except SiteError:
            for part in added:
                sums[part].take_back(values[part], weight)
            raise
        for part in self.sums:
            self.peaks.setdefault(part, {})[site] = largest(values[part])

    def merge(self, other: ExactMean) -> None:
        """Add the sums over other sites of the same cohort."""
        for part, total in self.sums.items():
            total.merge(other.sums[part])
        for part, count in self.counts.items():
            count.merge(other.counts[part])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it has added so far, part by part."""
        return {part: total.total for part, total in self._all.items()}

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Its tensors now hold the sum of `count` of at most `terms` replies."""
        for total in self._all.values():
            total.filled(terms, count, weight)

    @property
    def count(self) -> int:
        """Replies added."""
        return next(iter(self._all.values())).count

    @property
    def weight(self) -> int:
        """Their total weight."""
        return next(iter(self._all.values())).weight

    def mean(self) -> dict[str, Tensor]:
        """Weighted mean of each float part, float64, in the sums' memory (`ExactSum.mean`)."""
        return {part: total.mean() for part, total in self.sums.items()}

    def plain(self) -> dict[str, Tensor]:
        """Weighted sum of each float part, float64."""
        return {
            part: total.total.double() / 2.0**FRACTION_BITS for part, total in self.sums.items()
        }

    def integers(self) -> dict[str, Tensor]:
        """Sum of each integer part, int64, in its shape."""
        return {
            part: total.total.clone().view(self.specs[part].shape)
            for part, total in self.counts.items()
        }


def parted(specs: PartSpecs) -> tuple[PartSpecs, PartSpecs]:
    """The specs of the float parts, and those of the integer parts."""
    floats = {part: spec for part, spec in specs.items() if not spec.exact}
    return floats, {part: spec for part, spec in specs.items() if spec.exact}


def scaled(specs: PartSpecs, values: Payload, factor: float) -> dict[str, Tensor]:
    """Decoded values, all but integers multiplied by `factor`; those of a factor 1 as they are."""
    if factor == 1.0:
        return dict(values)
    return {part: value if specs[part].exact else value * factor for part, value in values.items()}


def decoded(specs: PartSpecs, payload: Payload, site: str) -> dict[str, Tensor]:
    """The values of a payload's parts; SiteError naming the site unless all fit their specs."""
    if payload.keys() != specs.keys():
        came, wanted = sorted(map(str, payload)), sorted(specs)
        raise SiteError(
            f"site '{site}' sent the parts {came}, not {wanted}",
            "the site runs another algorithm; compare the fingerprints",
        )
    for part, spec in specs.items():
        if spec.codec is not None and not spec.fits(payload[part]):  # others with the values
            raise SiteError(
                f"the part '{part}' of site '{site}' is not {spec.bytes:,} bytes of its codec",
                "the site runs another version of FedSight; install the same one everywhere",
            )
    try:
        return {part: spec.decode(payload[part]) for part, spec in specs.items()}
    except Exception as error:  # a codec of the user's own, and bytes of the site's choice
        raise SiteError(
            f"the update of site '{site}' cannot be decoded ({type(error).__name__}: {error})",
            "the site is broken or malicious, or the codec is: it must read any bytes",
        ) from error
