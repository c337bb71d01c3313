"""Drawings as inline SVG: text in both languages, and the colours of the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

from fedsight.report.bilingual import in_svg
from fedsight.report.words import Words

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """A finished drawing, what it says in words for those who do not see it, and its legend.

    The legend's entries are (number of the line's style, name).
    """

    svg: Markup
    description: Words
    legend: tuple[tuple[int, Words], ...] = ()
    note: Words = ""


@dataclass
class Drawing:
    """A drawing of `width` by `height` units; the page scales it to its column.

    Classes name the colour and the dashes, which the page's style sheet defines.
    """

    width: float
    height: float
    _parts: list[Markup] = field(default_factory=list)

    def line(self, start: Point, end: Point, style: str) -> None:
        """A straight line."""
        values = (*map(short, (*start, *end)), style)
        self._add('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>', *values)

    def path(self, points: Sequence[Point], style: str) -> None:
        """A line through all points."""
        steps = " ".join(f"{short(x)},{short(y)}" for x, y in points)
        self._add('<polyline points="{}" class="{}"/>', steps, style)

    def rectangle(self, corner: Point, size: Point, style: str, strength: float = 1.0) -> None:
        """A filled rectangle; `strength` is its opacity."""
        values = (*map(short, (*corner, *size)), style, f"{strength:.3g}")
        self._add(
            '<rect x="{}" y="{}" width="{}" height="{}" class="{}" fill-opacity="{}"/>', *values
        )

    def mark(self, at: Point, number: int) -> None:
        """A small mark, by number: circle, square, triangle, diamond."""
        x, y, r = short(at[0]), short(at[1]), 3.2
        style = f"mark m{number % 6 + 1}"
        if number % 4 == 0:
            self._add('<circle cx="{}" cy="{}" r="{}" class="{}"/>', x, y, r, style)
            return
        shapes = {
            1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
            2: ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
            3: ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
        }
        corners = [(at[0] + r * dx, at[1] + r * dy) for dx, dy in shapes[number % 4]]
        steps = " ".join(f"{short(dx)},{short(dy)}" for dx, dy in corners)
        self._add('<polygon points="{}" class="{}"/>', steps, style)

    def text(
        self, at: Point, words: Words, anchor: Anchor = "start", style: str = "", turn: float = 0
    ) -> None:
        """Text whose `anchor` is at a point of its base line, turned by `turn` degrees."""
        x, y = short(at[0]), short(at[1])
        turned = Markup(' transform="rotate({} {} {})"').format(short(turn), x, y) if turn else ""
        self._add(
            '<text x="{}" y="{}" text-anchor="{}" class="{}"{}>{}</text>',
            x, y, anchor, style, turned, in_svg(words),
        )  # fmt: skip

    def svg(self, name: str) -> Markup:
        """The whole drawing; `name-title` and `name-desc` are the ids of its words on the page."""
        head = Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
        ).format(short(self.width), short(self.height), name, name)
        return head + Markup("").join(self._parts) + Markup("</svg>")

    def _add(self, template: str, *values: object) -> None:
        self._parts.append(Markup(template).format(*values))


def short(value: float) -> str:
    """A coordinate with the digits that can be seen."""
    return f"{round(value, 2):g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, up to about `most`."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * by for by in (1, 2, 2.5, 5) if power * by >= raw), power * 10)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{step * at:.12g}") for at in range(first, last + 1)]
