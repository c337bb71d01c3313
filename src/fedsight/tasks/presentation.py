"""What a task shows of its answers: to a user who asks, and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Mark:
    """A box on an image: (left, top, right, bottom) in pixels of the network's input."""

    box: tuple[float, float, float, float]
    label: str
    kind: Literal["truth", "found"] = "found"


@dataclass(frozen=True)
class Answer:
    """What a model says of one image: in a word, how sure it is (0 to 1), and all of it.

    `details` are plain values for JSON; `marks` are drawn on the image.
    """

    label: str
    probability: float
    details: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()

    def shown(self, top: int) -> list[tuple[str, float]]:
        """The `top` most probable labels; the label alone where the task ranks none."""
        ranked = self.details.get("probabilities") or {self.label: self.probability}
        return list(ranked.items())[:top]


@dataclass(frozen=True)
class Sample:
    """A test image, or several side by side, with truth and answer, for the report.

    `positions` are places in the batch. `probability` is that of the answer.
    """

    positions: tuple[int, ...]
    truth: str
    predicted: str
    probability: float
    right: bool
    truth_probability: float | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Lines over one pair of axes, both from 0 to 1 (ROC, precision over recall)."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Table:
    """Figures by row (class, label, threshold); None where nothing could be measured."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | float | None, ...]]
