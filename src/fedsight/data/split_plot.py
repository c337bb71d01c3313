"""A plot of a split: how many images of each class every site holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsight.core.errors import DataError, StoreError
from fedsight.core.extras import install, missing
from fedsight.data.base import Indices

FORMATS = (".svg", ".png", ".pdf")
_MOST_BARS, _MOST_COLOURS = 40, 20


def draw_split(
    counts: Indices, sites: Sequence[str], classes: Sequence[str], title: str, path: Path
) -> None:
    """Draw `counts` [sites, classes]: a stacked bar per site, or a heat map when there are many.

    Raises DataError for another file type than SVG, PNG or PDF, StoreError when it cannot be saved.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(
            f"'{path}': a plot cannot be saved as '{path.suffix}'",
            f"end the name with one of {', '.join(FORMATS)}",
        )
    if absent := missing("plots"):
        cause = f"a picture of a split needs {', '.join(absent)}, which is not installed"
        raise DataError(cause, install("plots"))
    from matplotlib.figure import Figure

    bars = len(sites) <= _MOST_BARS and len(classes) <= _MOST_COLOURS
    height = 1.4 + 0.32 * len(sites) if bars else 6.0
    figure = Figure(figsize=(9.0, height), layout="constrained")
    axes = figure.add_subplot()
    if bars:
        _bars(axes, counts, sites, classes)
    else:
        _heat(figure, axes, counts, sites, classes)
    axes.set_title(title, loc="left", fontsize=11)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StoreError(
            f"'{path}' cannot be written: {error.strerror or error}",
            "choose another place with --picture",
        ) from error


def _bars(axes: Any, counts: Indices, sites: Sequence[str], classes: Sequence[str]) -> None:
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    rows = np.arange(len(sites))
    left = np.zeros(len(sites), dtype=np.int64)
    for number, name in enumerate(classes):
        axes.barh(rows, counts[:, number], left=left, color=palette[number], label=name)
        left += counts[:, number]
    axes.set_yticks(rows, sites)
    axes.invert_yaxis()
    axes.set_xlabel("training samples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _heat(
    figure: Any, axes: Any, counts: Indices, sites: Sequence[str], classes: Sequence[str]
) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares.T, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    if len(classes) <= 60:
        axes.set_yticks(np.arange(len(classes)), classes, fontsize=8)
    axes.set_xlabel(f"sites, {sites[0]} to {sites[-1]}")
    figure.colorbar(image, ax=axes, label="share of the site's training samples")
