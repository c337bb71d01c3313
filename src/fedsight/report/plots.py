"""Plots over rounds and over sites: curves, three-way comparison, sites, traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsight.report.sites import MAX_SITES
from fedsight.report.svg import CARD, COLOURS, INK, MUTED, Sheet
from fedsight.report.words import label, number, percent, size, word

FEDERATED, ALONE, POOLED = COLOURS[:3]
STYLES: tuple[tuple[str, str], ...] = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"))


@dataclass(frozen=True)
class Polyline:
    """A named series over rounds; a value is None if it was not measured."""

    name: str
    rounds: Sequence[int]
    values: Sequence[float | None]

    def points(self) -> tuple[list[int], list[float]]:
        """The rounds and values that were measured and are finite."""
        kept = [
            (x, y)
            for x, y in zip(self.rounds, self.values, strict=True)
            if y is not None and math.isfinite(y)
        ]
        return [x for x, _ in kept], [y for _, y in kept]


def curves(
    name: str,
    title: str,
    lines: Sequence[Polyline],
    share: bool = False,
    levels: Sequence[tuple[str, float, str]] = (),
) -> Markup:
    """Plot series over rounds; `share`: values are from 0 to 1.

    `levels` are final figures drawn as horizontal lines: (name, value, colour). Empty if no series
    has a point.
    """
    lines = [line for line in lines if line.points()[0]]
    if not lines:
        return Markup()
    form = percent if share else number
    description = "; ".join(
        f"{line.name}: {form(line.points()[1][-1])} in round {line.points()[0][-1]}"
        for line in lines
    ) + "".join(f"; {text}: {form(value)}" for text, value, _ in levels)
    names = len(lines) + len(levels)
    with Sheet(name, title, description, 2.6 + 0.2 * math.ceil(names / 2)) as sheet:
        axes = sheet.axes
        for at, line in enumerate(lines):
            dash, mark = STYLES[at % len(STYLES)]
            rounds, values = line.points()
            axes.plot(
                rounds,
                values,
                dash,
                color=COLOURS[at % len(COLOURS)],
                marker=mark if len(rounds) <= 60 else "",
                markevery=max(1, len(rounds) // 10),
                label=label(line.name),
            )
        for at, (text, value, colour) in enumerate(levels):
            axes.axhline(value, color=colour, linewidth=1.4, dashes=((6, 2), (2, 2))[at % 2])
            axes.lines[-1].set_label(label(text, 30))
        _over_rounds(axes)
        if share:
            _percent(axes.yaxis)
            low, high = axes.get_ylim()
            axes.set_ylim(max(0, math.floor(low * 10) / 10), min(1.02, math.ceil(high * 10) / 10))
        if names > 1:
            _legend(sheet)
    return sheet.svg


def shares(
    name: str,
    title: str,
    axes_of: tuple[str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
) -> Markup:
    """Plot lines over axes from 0 to 1, named `axes_of`. Empty if no line has a point."""
    kept = {name: points for name, points in lines.items() if points}
    if not kept:
        return Markup()
    description = f"{axes_of[1]} over {axes_of[0]}: {', '.join(label(one) for one in kept)}"
    with Sheet(name, title, description, 3.2 + 0.2 * math.ceil(len(kept) / 2)) as sheet:
        for at, (one, points) in enumerate(kept.items()):
            sheet.axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                STYLES[at % len(STYLES)][0],
                color=COLOURS[at % len(COLOURS)],
                label=label(one),
            )
        sheet.axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=axes_of[0], ylabel=axes_of[1])
        _percent(sheet.axes.xaxis)
        _percent(sheet.axes.yaxis)
        if len(kept) > 1:
            _legend(sheet)
    return sheet.svg


def three_way(
    name: str, figure: str, alone: Mapping[str, float], mean: float, federated: float, pooled: float
) -> Markup:
    """Plot each site alone as dots with their mean, and federated and pooled as bars."""
    description = (
        f"{len(alone)} sites alone: mean {percent(mean)}, from {percent(min(alone.values()))} to "
        f"{percent(max(alone.values()))}; federated {percent(federated)}; pooled {percent(pooled)}"
    )
    with Sheet(name, f"{figure} on the whole test part", description, 2.4) as sheet:
        axes = sheet.axes
        rows = ((2, mean, ALONE), (1, federated, FEDERATED), (0, pooled, POOLED))
        for (row, value, colour), hatch in zip(rows, ("", "", "///"), strict=True):
            faint = 0.3 if row == 2 else 1.0
            axes.barh(row, value, 0.62, color=colour, alpha=faint, hatch=hatch, edgecolor=CARD)
        spread = [2 + 0.2 * ((3 * at) % 5 - 2) / 2 for at in range(len(alone))]
        dot = 4.5 if len(alone) <= 30 else 2.0
        axes.plot(list(alone.values()), spread, "o", color=ALONE, mec=CARD, mew=0.6, ms=dot)
        axes.plot([mean, mean], [1.66, 2.34], color=ALONE, linewidth=2.5)
        edge = max(mean, *alone.values())
        for row, at, value in ((2, edge, mean), (1, federated, federated), (0, pooled, pooled)):
            text = ("mean " if row == 2 else "") + percent(value)
            axes.text(at + 0.02, row, text, va="center", weight="bold", color=INK)
        axes.set_yticks([2, 1, 0], ["each site\nalone", "federated", "pooled"])
        axes.set_xlim(0, 1.22)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.spines["bottom"].set_bounds(0, 1)
        _bare(axes)
        _percent(axes.xaxis)
        axes.set_xlabel(f"{word(figure)} on the whole test part")
    return sheet.svg


def by_site(
    name: str, figure: str, rows: Sequence[tuple[str, float | None, float | None]]
) -> Markup:
    """Plot for each site alone (hollow) and federated (filled), both measured for that site.

    `rows` are (site, alone, federated). If there are too many, the worst federated ones are drawn.
    """
    shown = [row for row in rows if row[2] is not None]
    if not shown:
        return Markup()
    if len(shown) > MAX_SITES:
        shown = sorted(shown, key=lambda row: row[2] or 0.0)[:MAX_SITES]
    description = "; ".join(
        label(site) + (f" alone {percent(alone)}," if alone is not None else "")
        + f" federated {percent(federated)}"
        for site, alone, federated in shown
    )  # fmt: skip
    with Sheet(name, f"{figure} for each site", description, 0.95 + 0.22 * len(shown)) as sheet:
        axes = sheet.axes
        for row, (_, alone, federated) in enumerate(shown):
            assert federated is not None
            if alone is not None:
                axes.plot([alone, federated], [row, row], color=MUTED, linewidth=1, zorder=1)
                axes.plot(alone, row, "s", color=ALONE, markerfacecolor=CARD, markersize=6)
            axes.plot(federated, row, "o", color=FEDERATED, markersize=7)
        if any(alone is not None for _, alone, _ in shown):
            axes.plot([], [], "s", color=ALONE, markerfacecolor=CARD, markersize=6, label="alone")
            axes.plot([], [], "o", color=FEDERATED, markersize=7, label="federated")
            _legend(sheet)
        axes.set_yticks(range(len(shown)), [label(site, 14) for site, _, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        _bare(axes)
        low = math.floor(10 * axes.get_xlim()[0]) / 10
        axes.set_xlim(max(0.0, low), 1.02)
        _percent(axes.xaxis)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.grid(axis="x")
        axes.set_xlabel(word(figure))
    return sheet.svg


def traffic(name: str, rounds: Sequence[int], up: Sequence[int], down: Sequence[int]) -> Markup:
    """Plot the bytes that sites sent and received, cumulated over the rounds."""
    sent, received = _running(up), _running(down)
    description = (
        f"after round {rounds[-1]}: sent by sites {size(sent[-1])}, received {size(received[-1])}"
    )
    with Sheet(name, "Cumulative traffic", description, 2.8) as sheet:
        axes = sheet.axes
        axes.plot(rounds, received, "-", color=ALONE, linewidth=3.5, label="received by sites")
        axes.plot(rounds, sent, "--", color=FEDERATED, label="sent by sites")
        _over_rounds(axes)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: size(value).replace(".0", "") if value else "0")
        )
        _legend(sheet)
    return sheet.svg


def _running(values: Sequence[int]) -> list[int]:
    total, sums = 0, []
    for value in values:
        total += value
        sums.append(total)
    return sums


def _over_rounds(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _percent(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))


def _bare(axes: Axes) -> None:
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)


def _legend(sheet: Sheet) -> None:
    sheet.figure.legend(loc="outside upper left", ncols=2, columnspacing=1.4, borderpad=0)
