"""Tasks in which an image has exactly one class: confusion matrices, and metrics by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.intervals import wilson
from fedsight.core.types import Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.tasks import averages, class_weights
from fedsight.tasks.base import Task
from fedsight.tasks.class_weights import Weights
from fedsight.tasks.metrics.base import Mix, metrics
from fedsight.tasks.plausible import are_between, are_counts
from fedsight.tasks.repair import projected

# What summary.json and history.jsonl say besides figures; a metric cannot have these names.
RESERVED = frozenset(
    {
        "name",
        "headline",
        "score",
        "score_error",
        "site_errors",
        "rounds",
        "seconds",
        "bytes_up",
        "bytes_down",
        "shorter_codec",
        "fingerprint",
    }
    | {
        "model_sha256",
        "worst_site",
        "by_site",
        "round",
        "train_loss",
        "epsilon",
        "lr",
        "cohort",
        "finish",
    }
    | {
        "measured_on",
        "model",
        "replies",
        "sites",
        "rejected",
        "doubts",
        "weight",
        "privacy",
        "unmeasured",
        "virtual_seconds",
        "staleness",
        "reply_seconds",
        "best",
        "kept",
        "score_interval",
        "calibration",
        "overfitting",
        "robustness",
        "shortcuts",
        "sets",
        "ood",
    }
)
_SUM = "metric:{}"  # the name of a metric's sum, which no other sum has


class SingleLabel(Task):
    """Base of tasks with one class per image; `metrics` names further figures to measure."""

    # what the task itself measures
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
    classed: ClassVar[bool] = True

    # further figures by name: auc, brier, top_5, or your own
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = ()
    # in the training loss: one for each class in their order, or "site": the rarer a class is among
    # the site's images, the more it weighs; figures are never weighted
    class_weights: Weights | None = None

    def soft(self, targets: Tensor, classes: int) -> Tensor:
        """One-hot rows [b, classes] of class numbers [b]."""
        return F.one_hot(targets, classes).float()

    @property
    def counts_labels(self) -> bool:
        """Whether classes are weighted by the site's own counts."""
        return self.class_weights == "site"

    def at(self, labels: Tensor, classes: int) -> Self:
        """With the weights that a site's class numbers [n] give, if they are to."""
        if self.class_weights != "site":
            return self
        return self.model_copy(update={"class_weights": class_weights.of_counts(labels, classes)})

    def check(self, dataset: Dataset) -> list[Problem]:
        """One class per image, and as many weights as classes."""
        wrong = class_weights.wrong_number(self.class_weights, len(dataset.classes))
        return super().check(dataset) or wrong

    def check_settings(self) -> list[Problem]:
        """Class weights that cannot be used; unknown metrics, and names that are used already."""
        problems = class_weights.problems(self.class_weights, not self.blends)
        for number, name in enumerate(self.metrics):
            if name in self.figures and name not in metrics.names():
                cause = f"the task '{self.registered}' always measures '{name}'"
                problems.append(Problem("task.metrics", cause, "leave it out"))
                continue
            try:
                metrics.get(name)
            except ConfigError as error:
                problems += [Problem("task.metrics", one.cause, one.cure) for one in error.problems]
            if name in self.metrics[:number]:
                cause = f"the metric '{name}' is named twice"
                problems.append(Problem("task.metrics", cause, "name it once"))
            if name in self.figures or name in RESERVED:
                cause = f"the metric '{name}' has the name of another entry of a run's files"
                cure = "register it under another name"
                problems.append(Problem("task.metrics", cause, cure))
        return problems

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float] | None:
        """One count in the confusion matrix, a loss of at most twice that of guessing, metrics."""
        found = {"confusion": 1.0, "loss": 2 * math.log(max(classes, 2))}
        for name in self.metrics:
            largest = metrics.get(name).largest
            if largest is None:
                return None
            found[_SUM.format(name)] = math.hypot(largest, 1.0)  # its value and its count
        return found

    def is_possible(self, sums: Mapping[str, Sum], pixels: int) -> bool:
        """One answer for each image, losses that are not negative, and metrics within bounds."""
        confusion, loss = sums["confusion"], sums["loss"].total
        cells, counts = confusion.total, confusion.total.sum(axis=1)
        if not are_counts(cells) or counts.sum() != confusion.count or not are_between(loss):
            return False
        return all(
            metrics.get(name)().is_possible(sums[_SUM.format(name)], counts)
            for name in self.metrics
        )

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """No negative numbers, as many images as there are, no more right answers than images."""
        found = dict(sums)
        found["confusion"] = _plausible(sums["confusion"])
        seen = found["confusion"].total.sum(axis=1) > 0
        found["loss"] = Sum(
            np.where(seen, np.maximum(sums["loss"].total, 0), 0), sums["loss"].count
        )
        for name in self.metrics:
            key, largest = _SUM.format(name), metrics.get(name).largest or 0.0
            values, counts = np.maximum(sums[key].total, 0).T
            pairs = np.stack([np.minimum(values, largest * counts), counts], axis=1)
            found[key] = Sum(pairs, sums[key].count)
        return found

    def measure_metrics(
        self, probabilities: Tensor, targets: Tensor, classes: int
    ) -> dict[str, Sum]:
        """The sums of the metrics, from probabilities [b, classes] and class numbers [b]."""
        if not self.metrics:
            return {}
        probabilities, targets = probabilities.cpu(), targets.cpu()
        return {
            _SUM.format(name): metrics.get(name)().measure(probabilities, targets, classes)
            for name in self.metrics
        }

    def metric_values(self, sums: Mapping[str, Sum], mix: Mix | None) -> dict[str, float]:
        """The figures of the metrics by name."""
        return {
            name: metrics.get(name)().value(sums[_SUM.format(name)], mix) for name in self.metrics
        }

    def averages(self, sums: Mapping[str, Sum], mix: Mix | None) -> dict[str, float]:
        """`balanced_accuracy` and `macro_f1`, from the confusion matrix."""
        counts = sums["confusion"].total
        return {
            "balanced_accuracy": averages.balanced_accuracy(counts, mix),
            "macro_f1": averages.macro_f1(counts, mix),
        }

    def intervals(self, sums: Mapping[str, Sum]) -> dict[str, tuple[float, float]]:
        """Of `accuracy` (Wilson 1927), `balanced_accuracy`, `macro_f1`, and metrics that have one.

        What these have in common: every test image counts once, and images are independent.
        """
        counts = sums["confusion"].total
        images = float(counts.sum())
        found: dict[str, tuple[float, float] | None] = {
            "accuracy": wilson(float(np.trace(counts)) / max(images, 1), images),
            "balanced_accuracy": averages.balanced_accuracy_interval(counts),
            "macro_f1": averages.macro_f1_interval(counts),
        }
        for name in self.metrics:
            found[name] = metrics.get(name)().interval(sums[_SUM.format(name)])
        return {name: one for name, one in found.items() if one and not math.isnan(one[0])}

    def falling(self) -> frozenset[str]:
        """Besides the task's own, metrics of which a lower figure is better."""
        return super().falling() | {name for name in self.metrics if metrics.get(name).falls}

    def measures(self) -> tuple[str, ...]:
        """The task's own figures and the metrics."""
        return (*self.figures, *self.metrics)


def _plausible(noised: Sum) -> Sum:
    """A confusion matrix [true, predicted] that may be one of `noised.count` images.

    The number of right answers, of which most figures are made, stays as it was estimated.
    """
    images = float(noised.count)
    cells = noised.total - (noised.total.sum() - images) / noised.total.size
    diagonal = np.eye(len(cells), dtype=bool)
    right = min(max(float(cells[diagonal].sum()), 0.0), images)
    if len(cells) == 1:
        right = images
    found = np.zeros_like(cells)
    found[diagonal] = projected(cells[diagonal], right)
    found[~diagonal] = projected(cells[~diagonal], images - right)
    return Sum(found, noised.count)


def confusion(truth: Tensor, answers: Tensor, losses: Tensor, classes: int) -> Metrics:
    """`confusion` [true, predicted] counts and `loss` [true] sums, of class numbers [b] int64 and
    losses [b]."""
    # On the CPU, since not every device has float64.
    truth, answers, losses = truth.cpu(), answers.cpu(), losses.cpu()
    pairs = truth * classes + answers
    counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    loss = torch.zeros(classes, dtype=torch.float64).index_add_(0, truth, losses.double())
    return {
        "confusion": Sum(counts.double().numpy(), len(truth)),
        "loss": Sum(loss.numpy(), len(truth)),
    }
