"""A user's own loss and measure as a program's task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.program.objects import OWN, Own
from fedsight.tasks.classification import Classification

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """A user's loss, and how well answers do; the task's functions as one object."""

    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    measure: Score | None = None


class OwnTask(Classification):
    """Classification with a user's own loss, own measure, or both."""

    registered: ClassVar[str | None] = OWN
    object: Own
    headline_name: str = "accuracy"

    @property
    def headline(self) -> str:  # type: ignore[override]  # a class variable elsewhere
        """The figure that models are compared by."""
        return self.headline_name

    @property
    def headline_title(self) -> str:  # type: ignore[override]  # a class variable elsewhere
        """What reports call it."""
        return self.headline_name.replace("_", " ").capitalize()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The user's loss of (logits [b, classes], labels [b]): a scalar."""
        own = self._objective.loss
        return super().loss(model, batch) if own is None else own(model(batch.x), batch.y)

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """As `Classification`, and `measure` [true]: sums of the user's measure by class."""
        sums = dict(super().measure(model, batch, classes))
        if self._objective.measure is not None:
            values = self._objective.measure(model(batch.x).float(), batch.y)
            totals = np.bincount(batch.y.numpy(), values.double().numpy(), minlength=classes)
            sums["measure"] = Sum(totals.astype(np.float64), len(batch.y))
        return sums

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """As `Classification`, and the mean of the user's measure."""
        figures = super().summary(sums, mix)
        if self._objective.measure is None:
            return figures
        counts = sums["confusion"].total.sum(axis=1)
        weights = counts if mix is None else np.where(counts > 0, mix, 0.0)
        means = sums["measure"].total / np.maximum(counts, 1)
        total = weights.sum()
        value = float((weights * means).sum() / total) if total else float("nan")
        return {**figures, self.headline_name: value}

    def check(self, dataset: Dataset) -> list[Problem]:
        """As `Classification`, and whether loss and measure give what they must."""
        if self.object.missing:
            return [self.object.problem("task")]
        classes = len(dataset.classes)
        logits = torch.zeros(3, classes, requires_grad=True)
        labels = torch.arange(3) % classes
        problems = [_try_loss(self._objective.loss, logits, labels)] if self._objective.loss else []
        if self._objective.measure:
            problems.append(_try_measure(self._objective.measure, logits.detach(), labels))
        return [*super().check(dataset), *(found for found in problems if found is not None)]

    @property
    def _objective(self) -> Objective:
        found = self.object.value
        if not isinstance(found, Objective):
            raise ConfigError([self.object.problem("task")])
        return found


def _try_loss(loss: Any, logits: Tensor, labels: Tensor) -> Problem | None:
    cure = "write loss(logits, labels), which gives the batch's mean as a scalar tensor"
    try:
        value = loss(logits, labels)
    except Exception as error:  # the user's code
        return Problem("task.loss", f"the loss fails: {type(error).__name__}: {error}", cure)
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        return Problem("task.loss", f"the loss gives {shape}, not a scalar tensor", cure)
    if not value.requires_grad:
        return Problem("task.loss", "the loss does not depend on the logits by gradients", cure)
    return None


def _try_measure(measure: Any, logits: Tensor, labels: Tensor) -> Problem | None:
    cure = "write measure(logits, labels), which gives one value from 0 to 1 for each image [b]"
    try:
        value = measure(logits, labels)
    except Exception as error:  # the user's code
        return Problem("task.measure", f"the measure fails: {type(error).__name__}: {error}", cure)
    if not isinstance(value, Tensor) or tuple(value.shape) != (len(labels),):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        return Problem("task.measure", f"the measure gives {shape}, not ({len(labels)},)", cure)
    if bool(((value < 0) | (value > 1)).any()):
        return Problem("task.measure", "the measure gives values outside 0 to 1", cure)
    return None


def task(
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    measure: Score | None = None,
    name: str | None = None,
) -> OwnTask:
    """Classification with your own loss, your own measure, or both.

    `loss(logits [b, classes], labels [b])` gives the batch's mean as a scalar tensor (default:
    cross-entropy); a loss module such as `nn.CrossEntropyLoss(label_smoothing=0.1)` will do.
    `measure(logits, labels)` gives one value from 0 to 1 for each image [b], of which more is
    better; its mean is the figure that runs are compared by (default: accuracy). `name` is what
    reports call it (default: the function's name).

    Raises ConfigError if one is not callable or cannot be pickled.
    """
    for where, given in (("task.loss", loss), ("task.measure", measure)):
        if given is not None and not callable(given):
            cause = f"expected a function of (logits, labels), got {given!r}"
            raise ConfigError([Problem(where, cause, "give a function")])
    used = [one for one in (loss, measure) if one is not None]
    title = " and ".join(str(getattr(one, "__qualname__", type(one).__name__)) for one in used)
    headline = name or (str(getattr(measure, "__name__", "measure")) if measure else "accuracy")
    own = Own.of(Objective(loss, measure), title or "a task", "task")
    return OwnTask(object=own, headline_name=headline)
