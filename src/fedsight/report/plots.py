"""Lines over rounds, bytes or seconds, and lines over axes from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fedsight.language.message import listed, message, plural
from fedsight.report.svg import Drawing, Plot, Point, ticks
from fedsight.report.words import Words, count, duration, label, number, percent, size

WIDTH, HEIGHT = 400.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 22.0, 24.0, 34.0
MARKED = 40  # rounds up to which each is marked
STEEP = 1e4  # times the median: larger values would flatten all others


@dataclass(frozen=True)
class Polyline:
    """A named series over rounds, or over another x; a value is None if it was not measured.
    `style` is the number of its colour and dashes."""

    name: Words
    x: Sequence[float | None]
    values: Sequence[float | None]
    style: int = 0

    def points(self) -> list[Point]:
        """The x and values that were measured and are finite."""
        return [
            (float(x), y)
            for x, y in zip(self.x, self.values, strict=True)
            if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
        ]


@dataclass(frozen=True)
class Across:
    """What series are drawn over: the words below the axis, and how a sentence ends that says where
    a point is. `whole`: it has only whole numbers."""

    axis: Words
    said: Callable[[float], Words]
    whole: bool = False


ROUNDS = Across(message("round"), lambda x: message("in round {round}", round=count(int(x))), True)
TRAFFIC = Across(
    message("megabytes up and down"), lambda x: message("after {size}", size=size(x * 1e6))
)
VIRTUAL = Across(
    message("virtual seconds"),
    lambda x: message("after {time} of virtual time", time=duration(x)),
)
TIME = Across(message("seconds"), lambda x: message("after {time}", time=duration(x)))


def curves(
    name: str, axis: Words, lines: Sequence[Polyline], share: bool = False, over: Across = ROUNDS
) -> Plot | None:
    """Series over rounds or another x; `axis` is the figure. `share`: values are shares, shown as
    percent.

    None if no series has a point. Values that would flatten all others are left out and counted.
    """
    points = [line.points() for line in lines]
    left_out = [_beyond(one, share) for one in points]
    drawn = [
        (line, [point for point in one if point not in out])
        for line, one, out in zip(lines, points, map(set, left_out), strict=True)
    ]
    drawn = [(line, one) for line, one in drawn if one]
    if not drawn:
        return None
    frame = _Frame.around([one for _, one in drawn], share, over.whole)
    drawing = Drawing(WIDTH, HEIGHT)
    frame.draw(drawing, axis, over.axis)
    for line, one in drawn:
        placed = [frame.place(point) for point in one]
        drawing.path(placed, f"line l{line.style % 6 + 1}")
        step = max(1, len(placed) // 10)
        if len(placed) <= MARKED:
            for at in placed[:: step if len(drawn) > 1 else 1]:
                drawing.mark(at, line.style)
    form = percent if share else number
    last = [
        message(
            "{name}: {value} {where}",
            name=line.name, value=form(one[-1][1]), where=over.said(one[-1][0]),
        )
        for line, one in drawn
    ]  # fmt: skip
    missing = sum(map(len, left_out))
    note = "" if not missing else plural(
        "{n} value is so far off the others that it is not drawn.",
        "{n} values are so far off the others that they are not drawn.",
        missing,
    )  # fmt: skip
    names = {line.style: line.name for line, _ in drawn}
    legend = tuple(names.items()) if len(names) > 1 else ()
    return Plot(drawing.svg(name), listed(last), legend, note)


def shares(
    name: str,
    axes: tuple[Words, Words],
    lines: Mapping[str, Sequence[Point]],
    names: Sequence[Words],
) -> Plot | None:
    """Lines over axes from 0 to 1, with these names in the legend. None if no line has a point."""
    kept = [
        (shown, [(x, y) for x, y in points if -0.01 <= x <= 1.01 and -0.01 <= y <= 1.01])
        for shown, points in zip(names, lines.values(), strict=True)
    ]
    kept = [(shown, points) for shown, points in kept if points]
    if not kept:
        return None
    drawing, frame = Drawing(WIDTH, 300.0), _Frame((0.0, 1.0), (0.0, 1.0), True, True, 300.0)
    frame.draw(drawing, axes[1], axes[0])
    for style, (_, points) in enumerate(kept):
        drawing.path([frame.place(point) for point in points], f"line l{style % 6 + 1}")
    description = message("{y} over {x}", y=axes[1], x=axes[0])
    legend = tuple((style, shown) for style, (shown, _) in enumerate(kept))
    return Plot(drawing.svg(name), description, legend if len(kept) > 1 else ())


def _beyond(points: Sequence[Point], share: bool) -> list[Point]:
    """Points whose values are no shares, or are larger than most by orders of magnitude."""
    if share:
        return [point for point in points if not -1.001 <= point[1] <= 1.001]
    if not points:
        return []
    bound = STEEP * max(1e-6, median(abs(y) for _, y in points))
    return [point for point in points if abs(point[1]) > min(bound, 1e15)]


@dataclass(frozen=True)
class _Frame:
    """The place of values on a drawing: from `x` to `x`, from `y` to `y`."""

    x: tuple[float, float]
    y: tuple[float, float]
    share: bool
    share_x: bool = False
    height: float = HEIGHT
    whole: bool = True  # only whole numbers of x have a tick

    @classmethod
    def around(cls, series: Sequence[Sequence[Point]], share: bool, whole: bool) -> _Frame:
        across = [x for points in series for x, _ in points]
        values = [y for points in series for _, y in points]
        low, high = min(values), max(values)
        if share:
            low, high = math.floor(10 * low) / 10, math.ceil(10 * high) / 10
        else:
            low = min(0.0, low)
        if high - low <= 1e-9 * max(1.0, abs(high)):
            room = 0.05 * max(1.0, abs(low))
            low, high = low - room * (low != 0 or not share), high + room * (high != 1 or not share)
        first, last = min(across), max(across)
        if not whole:
            first = 0.0
        room = max(1.0, 1e-9 * abs(last))  # one number alone
        x = (first, last) if last > first else (last - room, last + room)
        return cls(x, (low, high), share, whole=whole)

    def place(self, point: Point) -> Point:
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        inner = self.height - TOP - BOTTOM
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - up) * inner

    def draw(self, drawing: Drawing, above: Words, below: Words) -> None:
        """Grid, ticks, and what the axes are: the upright one above it, the other below it."""
        foot = self.height - BOTTOM
        for value in ticks(*self.y):
            _, y = self.place((self.x[0], value))
            drawing.line((LEFT, y), (WIDTH - RIGHT, y), "rule")
            form = percent(value, 0 if self.y[1] - self.y[0] > 0.04 else 1)
            drawing.text((LEFT - 6, y + 4), form if self.share else _bare(value), "end", "tick")
        for value in ticks(*self.x):
            if self.whole and not self.share_x and value != int(value):
                continue
            x, _ = self.place((value, self.y[0]))
            drawing.text(
                (x, foot + 14),
                percent(value, 0) if self.share_x else _bare(value),
                "middle",
                "tick",
            )
        drawing.text((4, 12), above, "start", "names")
        drawing.text((WIDTH - RIGHT, self.height - 3), below, "end", "names")


def _bare(value: float) -> str:
    """A tick: the number with no more digits than it needs."""
    return label(f"{value:.4g}", 9)
