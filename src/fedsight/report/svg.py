"""Plots as inline SVG, with real text and with the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from types import TracebackType
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers; yellow is darkened for white paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#8a6d00", "#3a9bd9")
INK, MUTED, RULE, CARD = "#1b1f24", "#5c6672", "#d9dde3", "#fefefe"
VARIABLES = {
    **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS, 1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    CARD: "var(--card)",
}
WIDTH = 4.0
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedsight",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
}


class Sheet:
    """One plot: `with Sheet(...) as sheet: sheet.axes.plot(...)`, then `sheet.svg`.

    `name` must be unique on the page; screen readers read `title` and `description`.
    """

    def __init__(self, name: str, title: str, description: str, height: float = 2.7) -> None:
        self.name, self.title, self.description, self.height = name, title, description, height
        self.svg = Markup()

    def __enter__(self) -> Sheet:
        self._settings = matplotlib.rc_context()
        self._settings.__enter__()
        matplotlib.rcdefaults()  # the user's matplotlibrc must not change the page
        matplotlib.rcParams.update(SETTINGS)
        self.figure = Figure(figsize=(WIDTH, self.height))
        self.axes: Axes = self.figure.add_subplot()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.svg = self._render()
        finally:
            self._settings.__exit__(kind, error, trace)

    def _render(self) -> Markup:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # The browser has glyphs that matplotlib's font lacks, as in Chinese site names.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
            # Not `savefig`, which draws everything twice to lay it out.
            canvas: Any = FigureCanvasSVG(self.figure)
            canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
        root = ET.fromstring(buffer.getvalue().decode("utf-8"))
        return Markup(ET.tostring(self._adopt(root), encoding="unicode"))

    def _adopt(self, root: ET.Element) -> ET.Element:
        """Remove namespaces and fixed size; make ids unique and colours those of the page."""
        for parent in list(root.iter()):
            for child in list(parent):
                if _local(child.tag) in {"metadata", "style"}:
                    parent.remove(child)
        for element in root.iter():
            element.tag = _local(element.tag)
            for key in list(element.attrib):
                value = element.attrib.pop(key)
                element.set(_local(key), self._attribute(_local(key), value))
        for key in ("width", "height", "version"):
            root.attrib.pop(key, None)
        root.set("role", "img")
        root.set("aria-labelledby", f"{self.name}-title {self.name}-desc")
        for tag, text in (("desc", self.description), ("title", self.title)):
            element = ET.Element(tag, {"id": f"{self.name}-{tag}"})
            element.text = text
            root.insert(0, element)
        return root

    def _attribute(self, key: str, value: str) -> str:
        if key == "id":
            return f"{self.name}-{value}"
        if key == "href" and value.startswith("#"):
            return f"#{self.name}-{value[1:]}"
        value = value.replace("url(#", f"url(#{self.name}-")
        if key == "style":
            value = re.sub(r"font:\s*([\d.]+px)[^;]*", r"font-size: \1", value)
            value = re.sub(r"font-family:[^;]*;?\s*", "", value)
            for colour, variable in VARIABLES.items():
                value = value.replace(colour, variable)
        return value


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
