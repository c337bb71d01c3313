"""Ordinal classes (grades), learnt as a sequence of conditional steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.tasks.agreement import kappa_interval, weighted_kappa
from fedsight.tasks.base import tasks
from fedsight.tasks.class_weights import vector
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.grades import Grades
from fedsight.tasks.presentation import Answer, Sample, Table
from fedsight.tasks.single_label import SingleLabel, confusion


@tasks.add("ordinal", paper="Shi, Cao and Raschka 2023 (CORN), arXiv:2111.08851")
class Ordinal(SingleLabel):
    """Grades in the order of the classes: conditional steps (CORN), quadratic weighted kappa.

    Output k of the network is the logit of "above grade k, given at least grade k"; there are as
    many outputs as classes, and the last one is not used. Multiplied, they give probabilities that
    are consistent with the order. The answer is the median grade, which minimises the mean
    absolute error.
    """

    headline: ClassVar[str] = "kappa"
    headline_title: ClassVar[str] = "Quadratic weighted kappa"
    figures: ClassVar[tuple[str, ...]] = ("kappa", "mae", *SingleLabel.figures)
    worse: ClassVar[frozenset[str]] = frozenset({"mae", "loss"})
    covering: ClassVar[Covering | None] = Grades()

    def check(self, dataset: Dataset) -> list[Problem]:
        """One grade per image, and an order that was stated or is that of numbers."""
        if problems := super().check(dataset):
            return problems
        if dataset.ordered:
            return []
        listed = json.dumps(dataset.classes, ensure_ascii=False)
        cause = "the grades are words, and words have no order of their own"
        cure = f"put them in order, the lowest first: data.classes = {listed} is alphabetical"
        return [Problem("data.classes", cause, cure)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Negative log-likelihood of the grades, times their weights, mean over the batch (equation
        5, not divided by the number of steps)."""
        logits = model(batch.x)
        weights = vector(self.class_weights, logits)
        if batch.y.is_floating_point():
            shares = batch.y if weights is None else batch.y * weights
            return _mean_losses(logits, shares).mean()
        losses = _losses(logits, batch.y)
        return (losses if weights is None else losses * weights[batch.y]).mean()

    def soft(self, targets: Tensor, classes: int) -> Tensor:
        """One-hot rows [b, classes]."""
        return super().soft(targets, classes)

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """`confusion` [true, predicted] counts, `loss` [true] sums, and those of the metrics."""
        logits = model(batch.x).float()
        above = _chained(logits)
        sums = confusion(batch.y, _median(above), _losses(logits, batch.y), classes)
        return {**sums, **self.measure_metrics(_between(above), batch.y, classes)}

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """`kappa` (Cohen 1968, quadratic weights), `mae` in grades, `accuracy`,
        `balanced_accuracy`, `macro_f1`, `loss` and metrics.

        `mix` gives the weights of the true grades; grades without test images are left out. Kappa
        is NaN, because it is undefined, if truth and answers are all one grade.
        """
        further = {**self.averages(sums, mix), **self.metric_values(sums, mix)}
        confusion, loss = sums["confusion"].total, sums["loss"].total
        counts = confusion.sum(axis=1)
        weights = counts if mix is None else np.where(counts > 0, mix, 0.0)
        if weights.sum() == 0:
            return {**dict.fromkeys(self.figures, float("nan")), **further}
        weights = weights / weights.sum() / np.maximum(counts, 1)
        shares = confusion * weights[:, None]  # sum to 1
        grades = np.arange(len(counts))
        apart = np.abs(grades[:, None] - grades[None, :])
        return {
            "kappa": weighted_kappa(shares),
            "mae": float((apart * shares).sum()),
            "accuracy": float(np.trace(shares)),
            "loss": float((weights * loss).sum()),
            **further,
        }

    def intervals(self, sums: Mapping[str, Sum]) -> dict[str, tuple[float, float]]:
        """Of `kappa`, and of what every task with one class has."""
        low, high = kappa_interval(sums["confusion"].total)
        found = super().intervals(sums)
        return found if math.isnan(low) else {"kappa": (low, high), **found}

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Probabilities of the grades [b, classes]."""
        return _between(_chained(model(x).float()))

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """The median grade, its own probability, and those of all grades in their order."""
        probabilities = self.predict(model, x).cpu()
        grades = _median(_above(probabilities)).tolist()
        return [
            Answer(
                classes[grade],
                float(row[grade]),
                {
                    "probabilities": dict(zip(classes, row.tolist(), strict=True)),
                    "expected": float(row @ torch.arange(len(classes), dtype=row.dtype)),
                },
            )
            for grade, row in zip(grades, probabilities, strict=True)
        ]

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """The mistakes by the most grades come first, then the most confident answers."""
        probabilities, y = self.predict(model, batch.x).cpu(), batch.y.cpu()
        grades = _median(_above(probabilities))
        sure = probabilities.gather(1, grades[:, None]).squeeze(1)
        truth = probabilities.gather(1, y[:, None]).squeeze(1)
        order = torch.argsort((grades - y).abs() + sure, descending=True, stable=True)
        return [
            Sample(
                positions=(at,),
                truth=classes[int(y[at])],
                predicted=classes[int(grades[at])],
                probability=float(sure[at]),
                right=bool(grades[at] == y[at]),
                truth_probability=float(truth[at]),
            )
            for at in order.tolist()
        ]

    def tables(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Table]:
        """For each grade: images, share of right answers, and mean distance in grades."""
        grades = np.arange(len(classes))
        rows: list[tuple[str | float | None, ...]] = []
        for grade, row in enumerate(sums["confusion"].total):
            count = float(row.sum())
            off = (np.abs(grades - grade) * row).sum()
            near = row[max(0, grade - 1) : grade + 2].sum()
            shares = (value / count if count else None for value in (row[grade], near, off))
            rows.append((classes[grade], count, *map(_float, shares)))
        columns = ("Grade", "Tested", "Right", "At most one off", "Grades off, mean")
        return [Table("By grade", columns, rows)]


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """-log P(y) [b]: the steps up to the true grade were taken, the next one was not."""
    steps = torch.arange(logits.shape[1] - 1, device=y.device)
    taken = (y[:, None] > steps).to(logits.dtype)
    asked = (y[:, None] >= steps).to(logits.dtype)  # later steps were not reached
    each = F.binary_cross_entropy_with_logits(logits[:, :-1], taken, reduction="none")
    return (each * asked).sum(dim=1)


def _mean_losses(logits: Tensor, shares: Tensor) -> Tensor:
    """`_losses` [b] of every grade, weighted by its share [b, classes] of the image."""
    at = shares[:, :-1]
    above = shares.sum(dim=1, keepdim=True) - shares.cumsum(dim=1)[:, :-1]
    steps = logits[:, :-1]
    return -(above * F.logsigmoid(steps) + at * F.logsigmoid(-steps)).sum(dim=1)


def _chained(logits: Tensor) -> Tensor:
    """P(y > k) [b, classes - 1], falling with k."""
    # a product, as a sum of logarithms: ONNX has no products along a dimension
    return F.logsigmoid(logits[:, :-1]).cumsum(dim=1).exp()


def _between(above: Tensor) -> Tensor:
    """The probabilities of the grades [b, classes] from P(y > k) [b, classes - 1]."""
    one, zero = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    return torch.cat([one, above], dim=1) - torch.cat([above, zero], dim=1)


def _above(probabilities: Tensor) -> Tensor:
    """P(y > k) [b, classes - 1] from the probabilities of the grades [b, classes]."""
    return 1 - probabilities[:, :-1].cumsum(dim=1)


def _median(above: Tensor) -> Tensor:
    """The median grade [b]: the number of steps with a probability above one half."""
    return (above > 0.5).sum(dim=1)
