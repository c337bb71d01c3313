"""Plots of tables: labels by site, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.patches import Rectangle

from fedsight.report.plots import FEDERATED
from fedsight.report.svg import CARD, INK, WIDTH, Sheet
from fedsight.report.words import count, label

MAX_NUMBERED = 12
MAX_CELLS = 1_600


def labels(
    name: str, title: str, classes: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]]
) -> Markup:
    """Plot the training samples of each class at each site; `rows` are (site, counts)."""
    counts = np.array([list(row) for _, row in rows], dtype=float)
    description = "; ".join(
        f"{label(site)}: "
        + ", ".join(f"{label(at)} {count(held)}" for at, held in zip(classes, row, strict=True))
        for site, row in rows[:12]
    )
    shade = counts / max(1.0, float(counts.max()))
    grid = _Grid(counts, shade, [site for site, _ in rows], classes, ("", "class"))
    return _cells(name, title, description, grid)


def confusion(name: str, classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    """Plot the confusion matrix: true class by row, predicted by column, shaded by share of row."""
    counts = np.array(matrix, dtype=float)
    rows = counts.sum(1, keepdims=True)
    right = "; ".join(
        f"{label(classes[at])}: {count(int(counts[at, at]))} of {count(int(rows[at, 0]))} correct"
        for at in range(min(len(classes), MAX_NUMBERED))
    )
    shade = counts / np.maximum(rows, 1.0)
    grid = _Grid(counts, shade, classes, classes, ("true class", "predicted class"))
    return _cells(name, "Confusion matrix", right, grid)


@dataclass(frozen=True)
class _Grid:
    """Counts [rows, columns], how dark each cell is (0 to 1), and what the axes say."""

    counts: np.ndarray
    shade: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    axis_names: tuple[str, str]


def _cells(name: str, title: str, description: str, grid: _Grid) -> Markup:
    counts, shade = grid.counts, grid.shade
    height, width = counts.shape
    numbers = height <= MAX_NUMBERED and width <= MAX_NUMBERED
    side = (WIDTH - 1.0) / width if numbers else 3.0 / max(height, width)
    with Sheet(name, title, description, 0.95 + min(4.5, max(2.0, side * height))) as sheet:
        axes = sheet.axes
        if counts.size <= MAX_CELLS:
            for (row, column), value in np.ndenumerate(shade):
                strength = 0.05 + 0.95 * float(value) if value else 0.03
                axes.add_artist(  # not `add_patch`, which adapts the limits to each
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1,
                        facecolor=FEDERATED, alpha=strength, edgecolor=CARD, linewidth=0.8,
                        in_layout=False,
                    )
                )  # fmt: skip
        else:
            blue = np.zeros((height, width, 4))
            blue[..., :3] = [int(FEDERATED[at : at + 2], 16) / 255 for at in (1, 3, 5)]
            blue[..., 3] = 0.05 + 0.95 * shade
            axes.imshow(blue, interpolation="none", aspect="auto")
        if numbers:
            for (row, column), value in np.ndenumerate(counts):
                if value:
                    axes.text(
                        column, row, f"{value:.0f}", ha="center", va="center_baseline",
                        fontsize=8, color=CARD if shade[row, column] > 0.7 else INK,
                        in_layout=False,
                    )  # fmt: skip
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        _names(
            axes.set_xticks, grid.columns, numbers, rotation=45, ha="right", rotation_mode="anchor"
        )
        _names(axes.set_yticks, grid.rows, numbers)
        axes.set_ylabel(grid.axis_names[0] or "")
        axes.set_xlabel(grid.axis_names[1])
        axes.tick_params(length=0, pad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return sheet.svg


def _names(put: object, names: Sequence[str], numbers: bool, **kwargs: object) -> None:
    """Label with every name if there is room, otherwise with as many as are readable."""
    step = 1 if numbers else max(1, -(-len(names) // 20))
    at = range(0, len(names), step)
    put(list(at), [label(names[i], 12) for i in at], fontsize=8, **kwargs)  # type: ignore[operator]
