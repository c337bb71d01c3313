"""How a task presents its answers, to users and in the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fedsight.core.types import Batch, Sum


@dataclass(frozen=True)
class Mark:
    """A box on an image: (left, top, right, bottom) in pixels of the network's input.

    `kind`: a detection (of an object, where the truth is known), an object that was missed, or a
    detection without an object. `score` is the detection's.
    """

    box: tuple[float, float, float, float]
    label: str
    kind: Literal["found", "missed", "false"] = "found"
    score: float | None = None


@dataclass(frozen=True)
class Answer:
    """A model's answer for one image: a label, its probability (0 to 1), and details.

    `details` holds plain values for JSON; `marks` are drawn on the image, and so are the pixels of
    `mask` bool [classes, h, w], in the network's input, where one was asked for.
    """

    label: str
    probability: float
    details: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    mask: Tensor | None = field(default=None, compare=False)

    def shown(self, top: int) -> list[tuple[str, float]]:
        """The `top` most probable labels, or the label alone if the task does not rank labels."""
        ranked = self.details.get("probabilities") or {self.label: self.probability}
        return list(ranked.items())[:top]


@dataclass(frozen=True)
class Sample:
    """A test image, or several side by side, with truth and answer, for the report.

    `positions` index the batch. `probability` is that of the answer. `areas` [h, w] says of each
    pixel of the network's input: 0 background, 1 found, 2 missed, 3 false; `overlap` is their Dice.
    """

    positions: tuple[int, ...]
    truth: str
    predicted: str
    probability: float
    right: bool
    truth_probability: float | None = None
    marks: tuple[Mark, ...] = ()
    areas: Tensor | None = None
    overlap: float | None = None


@dataclass(frozen=True)
class Curve:
    """Lines over one pair of axes from 0 to 1, such as ROC or precision over recall."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Table:
    """Figures by row (class, label, threshold); None where nothing was measured."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | float | None, ...]]


class Presentation(ABC):
    """The part of a task that shows answers to people.

    `fedsight predict` and the export call `predict` and `answers`; the report is made from
    `samples`, `curves`, `tables` and `site_tables`. The defaults suit one class per image.
    """

    @abstractmethod
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Probabilities [b, classes] for normalised images [b, c, h, w]."""

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """The answers for normalised images [b, c, h, w]; here, the most probable class of each."""
        return [_ranked(row, classes) for row in self.predict(model, x).tolist()]

    def showing(self, least: float) -> Self:
        """The same task with `least` as the lowest score of what it answers, if it has one."""
        return self

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """Test images with answers, most confident first; the report shows mistakes first."""
        probabilities, y = self.predict(model, batch.x).cpu(), batch.y.cpu()
        sure, predicted = probabilities.max(1)
        truths = probabilities.gather(1, y[:, None]).squeeze(1)
        order = torch.argsort(sure, descending=True, stable=True).tolist()
        return [
            Sample(
                positions=(at,),
                truth=classes[int(y[at])],
                predicted=classes[int(predicted[at])],
                probability=float(sure[at]),
                right=bool(predicted[at] == y[at]),
                truth_probability=float(truths[at]),
            )
            for at in order
        ]

    def curves(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Curve]:
        """Curves for the report, from the sums of all views."""
        return []

    def tables(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Table]:
        """Tables for the report, from the sums of all views."""
        return []

    def site_tables(
        self, sums: Mapping[str, Mapping[str, Sum]], classes: tuple[str, ...]
    ) -> list[Table]:
        """Tables for the report that compare sites, from the sums of each site that has some."""
        return []


def _ranked(probabilities: list[float], classes: tuple[str, ...]) -> Answer:
    # Sorting is stable: equal probabilities keep the order of the classes, as argmax does.
    ranked = sorted(zip(classes, probabilities, strict=True), key=lambda pair: -pair[1])
    label, probability = ranked[0]
    return Answer(label, probability, {"probabilities": dict(ranked)})
