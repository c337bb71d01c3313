"""Image classification with one label per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.tasks.base import tasks
from fedsight.tasks.class_weights import margins, vector
from fedsight.tasks.single_label import SingleLabel, confusion
from fedsight.tasks.unlabelled import entropy, masked


@tasks.add("classify")
class Classification(SingleLabel):
    """One label per image: cross-entropy, accuracy, balanced accuracy, macro F1."""

    scored: ClassVar[bool] = True
    stacks: ClassVar[bool] = True
    heeds_unlabelled: ClassVar[bool] = True

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    # strength of the margins that rare classes of a site get in its training loss (FedLC); 0: none
    calibration: float = Field(0.0, ge=0)
    _margins: tuple[float, ...] = PrivateAttr(())

    @property
    def counts_labels(self) -> bool:
        """Whether the loss follows from the site's own counts of classes."""
        return super().counts_labels or (self.calibration > 0 and not self._margins)

    @property
    def counts_images(self) -> bool:
        """Whether margins follow from the site's numbers of images."""
        return self.calibration > 0

    def at(self, labels: Tensor, classes: int) -> Self:
        """With the weights and margins that a site's class numbers [n] give, if they are to."""
        task = super().at(labels, classes)
        if not self.calibration:
            return task
        task = task.model_copy()
        task._margins = margins(labels, classes, self.calibration)
        return task

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing, class weights and margins, mean over the batch.

        Not over the sum of the batch's weights: then an image would change what others weigh, and
        the only image of a batch would not be weighted at all. The softmax is over the classes
        that the image's site labels.
        """
        logits, smoothing = model(batch.x), self.label_smoothing
        if self._margins:
            logits = logits.float() - torch.tensor(self._margins, device=logits.device)
        weights = vector(self.class_weights, logits)
        if batch.unlabelled is not None:
            return entropy(masked(logits, batch), batch.y, weights, smoothing).mean()
        if weights is None:
            return F.cross_entropy(logits, batch.y, label_smoothing=smoothing)
        total = F.cross_entropy(
            logits, batch.y, weights, reduction="sum", label_smoothing=smoothing
        )
        return total / len(logits)

    def soft(self, targets: Tensor, classes: int) -> Tensor:
        """One-hot rows [b, classes], which cross-entropy takes like class numbers."""
        return super().soft(targets, classes)

    def check_settings(self) -> list[Problem]:
        """As for every task with one class, and smoothing that a loss of its own ignores."""
        problems = super().check_settings()
        if self.label_smoothing and not self.blends:
            cause = "the task has a loss of its own, which does not use it"
            problems.append(Problem("task.label_smoothing", cause, "leave it out"))
        if self.calibration and not self.blends:
            cause = "the task has a loss of its own, which does not use it"
            problems.append(Problem("task.calibration", cause, "leave it out"))
        elif self.calibration and self.label_smoothing:
            cause = (
                "label smoothing asks for some probability of every class, and calibration takes "
                "classes that a site has no image of out of its loss"
            )
            problems.append(Problem("task.calibration", cause, "leave one of them out"))
        return problems

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """`confusion` [true, predicted] counts, `loss` [true] sums without smoothing, metrics."""
        logits = masked(model(batch.x).float(), batch)
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        sums = confusion(batch.y, logits.argmax(1), losses, classes)
        return {**sums, **self.measure_metrics(torch.softmax(logits, dim=1), batch.y, classes)}

    @property
    def share(self) -> bool:
        """Whether the headline is the accuracy."""
        return self.headline == "accuracy"

    def right(self, model: nn.Module, batch: Batch) -> Tensor:
        """Whether the most probable class is the true one [b]."""
        answers = masked(model(batch.x), batch).argmax(1)
        return answers == batch.y

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """The figures and metrics; with `mix`, the classes' own figures weighted by it.

        Classes in `mix` without test images are left out and the others scaled to sum to 1.
        """
        further = {**self.averages(sums, mix), **self.metric_values(sums, mix)}
        confusion, loss = sums["confusion"].total, sums["loss"].total
        counts = confusion.sum(axis=1)
        seen = counts > 0
        weights = counts / counts.sum() if mix is None else np.where(seen, mix, 0.0)
        if weights.sum() == 0:
            return {"accuracy": float("nan"), "loss": float("nan"), **further}
        weights = weights / weights.sum()
        per_class = np.maximum(counts, 1)
        return {
            "accuracy": float((weights * np.diag(confusion) / per_class).sum()),
            "loss": float((weights * loss / per_class).sum()),
            **further,
        }

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Softmax probabilities [b, classes]."""
        return torch.softmax(model(x).float(), dim=1)
