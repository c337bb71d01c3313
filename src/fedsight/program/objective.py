"""A user's own loss and measure as a program's task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from fedsight.tasks.single_label import RESERVED

LOSS = "write loss(logits, labels), which gives the batch's mean as a scalar tensor"
MEASURE = "write measure(logits, labels), which gives one value from 0 to 1 for each image [b]"

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
        if own is None:
            return super().loss(model, batch)
        if isinstance(own, nn.Module):  # it may hold weights of classes
            own.to(batch.x.device)
        return own(model(batch.x), batch.y)

    @property
    def blends(self) -> bool:
        """Whether the loss is not the user's."""
        return not self.object.missing and self._objective.loss is None

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """As `Classification`, and `measure` [true]: sums of the user's measure by class."""
        sums = dict(super().measure(model, batch, classes))
        if self._objective.measure is not None:
            values = self._objective.measure(model(batch.x).float(), batch.y)
            if wrong := _measure_fault(values, len(batch.y)):
                raise ConfigError([Problem("task.measure", f"the measure {wrong}", MEASURE)])
            weights = values.cpu().double().numpy()
            totals = np.bincount(batch.y.cpu().numpy(), weights, minlength=classes)
            sums["measure"] = Sum(totals.astype(np.float64), len(batch.y))
        return sums

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float] | None:
        """As `Classification`, and one image's measure, at most 1."""
        found = super().bounds(classes, pixels)
        if found is None or self._objective.measure is None:
            return found
        return {**found, "measure": 1.0}

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """As `Classification`, and no measure above 1 or below 0."""
        found = super().repaired(sums, deviation)
        if self._objective.measure is not None:
            values, images = sums["measure"], found["confusion"].total.sum(axis=1)
            found["measure"] = Sum(np.clip(values.total, 0.0, images), values.count)
        return found

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
        tried = _tried(self._objective, len(dataset.classes))
        one_each = {found.where: found for found in tried}  # what fails on one image fails on all
        return [*super().check(dataset), *one_each.values()]

    @property
    def _objective(self) -> Objective:
        found = self.object.value
        if not isinstance(found, Objective):
            raise ConfigError([self.object.problem("task")])
        return found


def _tried(own: Objective, classes: int) -> Iterator[Problem]:
    """Problems with a loss and a measure, each tried on one image and on several."""
    draws = torch.Generator().manual_seed(0)
    for count in (1, classes + 1):
        logits = torch.randn(count, classes, generator=draws).requires_grad_()
        labels = torch.arange(count) % classes
        for where, function, fault, cure in (
            ("task.loss", own.loss, _loss_fault, LOSS),
            ("task.measure", own.measure, _measure_fault, MEASURE),
        ):
            if function is None:
                continue
            kind = where.removeprefix("task.")
            given = logits if function is own.loss else logits.detach()
            try:
                # Not the logits themselves, which as a leaf could not be changed in place.
                wrong = fault(function(given * 1, labels), count)
            except Exception as error:  # the user's code
                images = "one image" if count == 1 else f"{count} images"
                wrong = f"fails on {images}: {type(error).__name__}: {error}"
            if wrong is not None:
                yield Problem(where, f"the {kind} {wrong}", cure)


def _loss_fault(value: Any, count: int) -> str | None:
    """What is wrong with a loss's value for `count` images; None if nothing is."""
    if not isinstance(value, Tensor) or value.dim() != 0:
        return f"gives {_shape(value)}, not a scalar tensor"
    if not bool(torch.isfinite(value)):
        return f"gives {value.item()} on random logits"
    if not value.requires_grad:
        return "does not depend on the logits by gradients"
    return None


def _measure_fault(value: Any, count: int) -> str | None:
    """What is wrong with a measure's values for `count` images; None if nothing is."""
    if not isinstance(value, Tensor) or tuple(value.shape) != (count,):
        return f"gives {_shape(value)}, not ({count},)"
    if not bool(((value >= 0) & (value <= 1)).all()):  # NaN too
        return "gives values outside 0 to 1"
    return None


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


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

    Raises ConfigError if one is not callable or cannot be pickled, if the loss has parameters, and
    for a name that another figure has.
    """
    for where, given in (("task.loss", loss), ("task.measure", measure)):
        if given is not None and not callable(given):
            cause = f"expected a function of (logits, labels), got {given!r}"
            raise ConfigError([Problem(where, cause, "give a function")])
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        cause = (
            f"{type(loss).__name__} has parameters of its own, and only the network's are trained"
        )
        cure = "make them buffers or parameters of the network, or leave them out"
        raise ConfigError([Problem("task.loss", cause, cure)])
    used = [one for one in (loss, measure) if one is not None]
    title = " and ".join(str(getattr(one, "__qualname__", type(one).__name__)) for one in used)
    headline = _headline(measure, name)
    own = Own.of(Objective(loss, measure), title or "a task", "task")
    return OwnTask(object=own, headline_name=headline)


def _headline(measure: Score | None, name: Any) -> str:
    """The name of the figure that runs are compared by; ConfigError for one that will not do."""
    if measure is None and name is None:
        return "accuracy"
    found = str(getattr(measure, "__name__", "measure")) if name is None else name
    if found == "<lambda>":
        found = "measure"
    if measure is None:
        cause = f"name is {name!r}, and there is no measure that it could name"
        raise ConfigError([Problem("task.name", cause, "give measure=..., or leave name out")])
    if not isinstance(found, str) or not found.isprintable() or not found.strip():
        cause = f"{found!r} cannot be the name of a figure"
        raise ConfigError([Problem("task.name", cause, 'write for example name="top_2"')])
    if found in RESERVED or found in Classification.figures:
        cause = f"the measure is called '{found}', and a run has a figure of that name already"
        cure = f'give it another name: fedsight.task(..., name="my_{found}")'
        raise ConfigError([Problem("task.name", cause, cure)])
    return found
