"""Counts as a grid of shaded cells: labels by site, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsight.language.message import listed, message
from fedsight.report.svg import Drawing, Plot
from fedsight.report.words import Words, count, label

WIDTH = 400.0
NUMBERED = 12  # rows or columns up to which the cells have numbers
MOST = 40  # rows or columns that can still be told apart
DESCRIBED = 12  # rows told to those who do not see the grid

Counts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Grid:
    """Counts by row and column, their names, and what the axes are."""

    counts: Counts
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[Words, Words]
    by_row: bool = False  # shade each cell by its share of the row, not of the largest cell


def labels(name: str, classes: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]]) -> Plot:
    """The training samples of each class at each site; `rows` are (site, counts)."""
    shown = rows[:MOST]
    described = [
        message(
            "{site}: {counts}", site=label(site),
            counts=listed(f"{label(one)} {count(n)}" for one, n in zip(classes, held, strict=True)),
        )
        for site, held in shown[:DESCRIBED]
    ]  # fmt: skip
    grid = Grid(
        [held for _, held in shown], [site for site, _ in shown], classes,
        (message("site"), message("class")),
    )  # fmt: skip
    return Plot(_cells(name, grid), listed(described))


def confusion(name: str, classes: Sequence[str], matrix: Counts) -> Plot:
    """The confusion matrix: true class by row, predicted by column, shaded by share of row."""
    right = [
        message(
            "{name}: {right} of {all} right",
            name=label(one), right=count(matrix[at][at]), all=count(sum(matrix[at])),
        )
        for at, one in enumerate(classes[:DESCRIBED])
    ]  # fmt: skip
    axes = (message("true class"), message("predicted class"))
    return Plot(_cells(name, Grid(matrix, classes, classes, axes, True)), listed(right))


def _cells(name: str, grid: Grid) -> Markup:
    height, width = len(grid.counts), len(grid.columns)
    numbers = max(height, width) <= NUMBERED
    left, top, foot = 92.0, 22.0, 82.0
    side = min(46.0, (WIDTH - left - 4) / max(1, width))
    tall = min(side, 30.0) if numbers else max(side, 5.0)
    drawing = Drawing(WIDTH, top + tall * height + foot)
    largest = max((max(row, default=0) for row in grid.counts), default=0)
    for at, row in enumerate(grid.counts):
        whole = sum(row) if grid.by_row else largest
        for to, value in enumerate(row):
            strength = min(1.0, max(0.0, value / whole)) if whole > 0 else 0.0
            corner = (left + to * side, top + at * tall)
            strong = 0.06 + 0.94 * strength if value else 0.03
            drawing.rectangle(corner, (side - 1, tall - 1), "cell", strong)
            if numbers and value:
                middle = (corner[0] + side / 2 - 0.5, corner[1] + tall / 2 + 3.5)
                tone = "number light" if strength > 0.55 else "number"
                drawing.text(middle, _narrow(value), "middle", tone)
    step = 1 if numbers else max(1, -(-max(height, width) // 20))
    for at in range(0, height, step):
        base = top + (at + 0.5) * tall + 3.5
        drawing.text((left - 6, base), label(grid.rows[at], 14), "end", "tick")
    under = top + height * tall + 12
    for to in range(0, width, step):
        at_x = left + (to + 0.5) * side + 3
        drawing.text((at_x, under), label(grid.columns[to], 13), "end", "tick", -45)
    drawing.text((4, 12), grid.axes[0], "start", "names")
    drawing.text((WIDTH - 4, drawing.height - 3), grid.axes[1], "end", "names")
    return drawing.svg(name)


def _narrow(value: int) -> str:
    """A count that fits its cell."""
    return (
        str(value)
        if abs(value) < 1e4
        else f"{float(value):.0e}".replace("e+0", "e").replace("e+", "e")
    )
