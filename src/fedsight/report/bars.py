"""Values and intervals placed on a line, as percentages of its length that the page draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedsight.report.sites import SiteRow
from fedsight.report.svg import ticks
from fedsight.report.view import ThreeWay
from fedsight.report.words import Words, percent

FEW = 24  # sites that are all shown; of more, the ends
END = 10  # sites shown at each end


@dataclass(frozen=True)
class Scale:
    """A line from `low` to `high`. What lies beyond is drawn at its end."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None], *within: float) -> Scale:
        """A scale that holds all values from -1 to 1, and those of `within`."""
        seen = [v for v in values if v is not None and math.isfinite(v) and -1 <= v <= 1]
        low, high = min([*seen, *within]), max([*seen, *within])
        room = 0.08 * (high - low) or 0.05
        return cls(low - room, high + room)

    def at(self, value: float) -> str:
        """The place of a value, in percent of the line."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(1.0, max(0.0, share)):.2f}"

    def across(self, low: float, high: float) -> str:
        """The length of an interval, in percent of the line."""
        return f"{float(self.at(high)) - float(self.at(low)):.2f}"

    def marks(self, differences: bool) -> list[tuple[str, Words, bool]]:
        """Ticks: their places, what they say, in points or in percent, and whether a narrow page
        leaves them out: every other one, counted from zero."""
        found = ticks(self.low, self.high, 5)
        step = found[1] - found[0] if len(found) > 1 else 1.0
        digits = 0 if all(abs(100 * value - round(100 * value)) < 1e-6 for value in found) else 1
        return [
            (
                self.at(value),
                _signed(100 * value, digits) if differences else percent(value, digits),
                len(found) > 2 and round(value / step) % 2 == 1,
            )
            for value in found
        ]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0"


def gains(rows: Sequence[SiteRow]) -> Scale:
    """The scale of the sites' gains."""
    bounds = [bound for row in rows for bound in row.bounds or ()]
    return Scale.of([*(row.gain for row in rows), *bounds], 0.0)


def figures(rows: Sequence[SiteRow]) -> Scale:
    """The scale of the sites' figures."""
    ends = [end for row in rows if row.spread for end in (row.spread.low, row.spread.high)]
    values = [
        value
        for value in (*(row.federated for row in rows), *ends)
        if value is not None and math.isfinite(value)
    ]
    found = Scale.of(values, next(iter(values), 0.0))
    # No room is made where no figure can be; only some figures can be below 0.
    low = found.low if min(values, default=0.0) < 0 else max(0.0, found.low)
    return Scale(low, min(1.0, found.high))


def three(found: ThreeWay, bounds: tuple[float, float] | None) -> Scale:
    """The scale of the three-way comparison."""
    return Scale.of([*found.alone.values(), found.federated, found.pooled, *(bounds or ())], 0.0)


def ends(rows: Sequence[SiteRow]) -> tuple[Sequence[SiteRow], Sequence[SiteRow], int]:
    """The first sites, the last ones, and how many are left out between them."""
    if len(rows) <= FEW:
        return rows, (), 0
    return rows[:END], rows[-END:], len(rows) - 2 * END
