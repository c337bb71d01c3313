"""Several labels per image, each present or not: cross-entropy and AUC for each label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.labels import Labels
from fedsight.tasks.plausible import are_between, are_counts
from fedsight.tasks.presentation import Answer, Curve, Sample, Table
from fedsight.tasks.repair import coarse, fine, projected
from fedsight.tasks.roc import BINS, auc, auc_interval, auc_slack, histogram, roc, thin

Weight = Annotated[float, Field(gt=0)]
_DRAWN = 8  # more lines cannot be distinguished
_HALF = BINS // 2  # the bin where a probability of one half begins
# Where the wider bins of noised scores begin: at these logits, their opposites, and 0.
_LOGITS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
_STEPS = [round(_HALF * logit / (4 + logit)) for logit in _LOGITS]
EDGES = (0, *(_HALF - step for step in reversed(_STEPS)), _HALF, *(_HALF + s for s in _STEPS))


@tasks.add("multilabel", source="AUC: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747")
class MultiLabel(Task):
    """Several labels per image, or none: binary cross-entropy, AUC of each label and their mean.

    Sites report histograms of scores by label, never the score of an image. The area from the
    added histograms is that of all images together. It does not depend on how frequent a label is,
    so a site's label mix does not change it.
    """

    headline: ClassVar[str] = "auc"
    headline_title: ClassVar[str] = "Mean AUC"
    figures: ClassVar[tuple[str, ...]] = ("auc", "accuracy", "loss")
    mixes: ClassVar[bool] = False
    heeds_unlabelled: ClassVar[bool] = True
    scores_all: ClassVar[bool] = True
    covering: ClassVar[Covering | None] = Labels()
    # weight of images that have a label in its training loss, for rare labels: one number for all
    # labels, or one for each in the order of the classes
    positive_weight: Weight | Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)] = 1.0
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def check(self, dataset: Dataset) -> list[Problem]:
        """Targets [n, labels] of zeros and ones, and a weight for each label."""
        labels = len(dataset.classes)
        for part in (dataset.train, dataset.test):
            found = part.targets
            if found is None or found.shape[1:] != (labels,) or not _binary(found):
                cause = "the data do not give 0 or 1 for every label of an image"
                cure = "use a source with several labels per image, or the task 'classify'"
                if found is None:
                    cure = (
                        "set data.label_separator to what stands between several labels of an "
                        "image (such as '|'), or choose the task 'classify'"
                    )
                return [Problem("task.name", cause, cure)]
        weights = self.positive_weight
        if isinstance(weights, tuple) and len(weights) != labels:
            cause = f"{len(weights)} weights are given, but the data have {labels} labels"
            cure = "give one number for all, or one for each label"
            return [Problem("task.positive_weight", cause, cure)]
        return []

    def blank(self, classes: int) -> Tensor:
        """No label [1, labels]."""
        return torch.zeros(1, classes)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Binary cross-entropy with the weights, mean over the labels that an image's site labels,
        and over the batch.

        Smoothing moves each target towards one half by this share (Szegedy et al. 2016, section 7,
        for two classes).
        """
        logits, y = model(batch.x), batch.y
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights = torch.as_tensor(self.positive_weight, dtype=logits.dtype, device=logits.device)
        if batch.unlabelled is None:
            return F.binary_cross_entropy_with_logits(logits, y, pos_weight=weights)
        losses = F.binary_cross_entropy_with_logits(logits, y, pos_weight=weights, reduction="none")
        known = (~batch.unlabelled).to(losses.dtype)
        return ((losses * known).sum(1) / known.sum(1)).mean()

    def soft(self, targets: Tensor, classes: int) -> Tensor:
        """The labels [b, labels], which are numbers already."""
        return targets.float()

    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """`positives` and `negatives`: score histograms [labels, bins]; `loss` [labels] sums.

        A score is x / (4 + |x|) of the logit x: -1 to 1, with fine bins even for rare labels with
        small probabilities; 0 is a probability of one half.
        """
        logits, y = model(batch.x).float().cpu(), batch.y.cpu()
        losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none").double()
        scores = torch.nan_to_num(logits.double())
        scores = scores / (4 + scores.abs())
        has, known = y > 0.5, torch.ones_like(y, dtype=torch.bool)
        if batch.unlabelled is not None:
            known = ~batch.unlabelled.cpu()
        counts = {
            name: np.stack(
                [
                    histogram(scores[chosen[:, label], label], low=-1.0).numpy()
                    for label in range(classes)
                ]
            )
            for name, chosen in (("positives", has & known), ("negatives", ~has & known))
        }
        losses = losses.masked_fill(~known, 0.0)
        found = {name: Sum(total, len(y)) for name, total in counts.items()}
        return {**found, "loss": Sum(losses.sum(0).numpy(), len(y))}

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float]:
        """One score for each label, and at most twice the loss of guessing."""
        return {"scores": math.sqrt(classes), "loss": 2 * math.log(2) * classes}

    def condensed(self, sums: Mapping[str, Sum]) -> dict[str, Sum]:
        """`scores` [2 (with the label, without), labels, bins], and `loss`, over all labels."""
        both = np.stack([sums["positives"].total, sums["negatives"].total])
        count = sums["positives"].count
        loss = np.asarray(sums["loss"].total.sum())
        return {"scores": Sum(coarse(both, EDGES), count), "loss": Sum(loss, count)}

    def is_possible(self, sums: Mapping[str, Sum], pixels: int) -> bool:
        """Each label has one score in each image, or none at a site that does not label it; losses
        are not negative."""
        both = np.stack([sums["positives"].total, sums["negatives"].total])
        scores = both.sum(axis=(0, 2))
        scored = ((scores == sums["positives"].count) | (scores == 0)).all()
        return bool(scored) and are_counts(both) and are_between(sums["loss"].total)

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """Every label has a score in every image. Where noise hides how many images have a label,
        or how many do not, all are counted as one of the two, and the label has no AUC."""
        found, images = np.zeros_like(sums["scores"].total), float(sums["scores"].count)
        hidden = 2 * deviation["scores"] * math.sqrt(len(EDGES) / 2)  # standard errors of a number
        for label, raw in enumerate(sums["scores"].total.transpose(1, 0, 2)):
            cells = raw - (raw.sum() - images) / raw.size
            have = float(cells[0].sum())
            have = have if min(have, images - have) >= hidden else round(have / images) * images
            have = min(max(have, 0.0), images)
            found[0, label] = projected(cells[0], have)
            found[1, label] = projected(cells[1], images - have)
        positives, negatives = (Sum(one, sums["scores"].count) for one in fine(found, EDGES, BINS))
        loss = np.full(found.shape[1], max(float(sums["loss"].total), 0.0) / found.shape[1])
        return {
            "positives": positives,
            "negatives": negatives,
            "loss": Sum(loss, sums["loss"].count),
        }

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """`auc`, mean over the labels that some images have and others do not, and `auc_slack`, the
        largest error that counting scores in bins gives it; `accuracy` at a probability of one half
        and `loss`, means over labels and images. `mix` is ignored.
        """
        positives, negatives = sums["positives"].total, sums["negatives"].total
        areas = [auc(*pair) for pair in zip(positives, negatives, strict=True)]
        areas = [area for area in areas if not np.isnan(area)]
        slacks = [auc_slack(*pair) for pair in zip(positives, negatives, strict=True)]
        slacks = [slack for slack in slacks if not np.isnan(slack)]
        right = positives[:, _HALF:].sum() + negatives[:, :_HALF].sum()
        answers = positives.sum() + negatives.sum()
        nan = float("nan")
        return {
            "auc": float(np.mean(areas)) if areas else nan,
            "auc_slack": float(np.mean(slacks)) if slacks else nan,
            "accuracy": float(right / answers) if answers else nan,
            "loss": float(sums["loss"].total.sum() / answers) if answers else nan,
        }

    def intervals(self, sums: Mapping[str, Sum]) -> dict[str, tuple[float, float]]:
        """Of `auc`: the mean of the labels' bounds (`roc.auc_interval`), as if their errors, of
        which the sums do not tell whether they go together, all went the same way."""
        pairs = zip(sums["positives"].total, sums["negatives"].total, strict=True)
        bounds = np.array([auc_interval(*pair) for pair in pairs])
        known = bounds[~np.isnan(bounds).any(axis=1)]
        return {"auc": (float(known[:, 0].mean()), float(known[:, 1].mean()))} if len(known) else {}

    def occurring(self, sums: Mapping[str, Sum]) -> npt.NDArray[np.bool_]:
        """The labels that an image has, and those that one has not."""
        both = (sums["positives"].total.sum(axis=1) > 0, sums["negatives"].total.sum(axis=1) > 0)
        return np.concatenate(both)

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """The probability of each label [b, labels]; they do not sum to 1."""
        return torch.sigmoid(model(x).float())

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """The labels that are more probable than not, and the joint probability of the answer."""
        found = []
        for row in self.predict(model, x).cpu():
            ranked = sorted(zip(classes, row.tolist(), strict=True), key=lambda pair: -pair[1])
            sure = float(torch.maximum(row, 1 - row).prod())
            details = {"probabilities": dict(ranked), "labels": _above(row, classes)}
            found.append(Answer(_words(row > 0.5, classes), sure, details))
        return found

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """An answer is right if all labels are; its probability is that of all labels together."""
        probabilities = self.predict(model, batch.x).cpu()
        has, answered = batch.y.cpu() > 0.5, probabilities > 0.5
        sure = torch.where(answered, probabilities, 1 - probabilities).prod(1)
        truth = torch.where(has, probabilities, 1 - probabilities).prod(1)
        return [
            Sample(
                positions=(at,),
                truth=_words(has[at], classes),
                predicted=_words(answered[at], classes),
                probability=float(sure[at]),
                right=bool((has[at] == answered[at]).all()),
                truth_probability=float(truth[at]),
            )
            for at in torch.argsort(sure, descending=True, stable=True).tolist()
        ]

    def curves(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Curve]:
        """The ROC of each label; if there are many, of the four lowest and four highest AUCs."""
        pairs = zip(sums["positives"].total, sums["negatives"].total, strict=True)
        found = {name: (auc(*pair), pair) for name, pair in zip(classes, pairs, strict=True)}
        known = [name for name in found if not np.isnan(found[name][0])]
        title = "ROC by label"
        if len(known) > _DRAWN:
            known.sort(key=lambda name: found[name][0])
            known = [*known[: _DRAWN // 2], *known[-_DRAWN // 2 :]]
            title += f", the {_DRAWN // 2} lowest and the {_DRAWN // 2} highest areas"
        lines = {f"{name} ({found[name][0]:.3f})": thin(*roc(*found[name][1])) for name in known}
        axes = ("False positive rate", "True positive rate")
        return [Curve(title, *axes, lines)] if lines else []

    def tables(self, sums: Mapping[str, Sum], classes: tuple[str, ...]) -> list[Table]:
        """For each label: images, AUC with its 95 % interval, precision, recall (sensitivity), F1
        and specificity."""
        rows: list[tuple[str | float | None, ...]] = []
        histograms = zip(sums["positives"].total, sums["negatives"].total, strict=True)
        for name, (pos, neg) in zip(classes, histograms, strict=True):
            low, high = auc_interval(pos, neg)
            right, wrong, there = pos[_HALF:].sum(), neg[_HALF:].sum(), pos.sum()
            rates = (
                _share(right, right + wrong),
                _share(right, there),
                _share(2 * right, right + wrong + there),
                _share(neg[:_HALF].sum(), neg.sum()),
            )
            area = (auc(pos, neg), low, high, auc_slack(pos, neg))
            figures = (None if np.isnan(value) else value for value in (*area, *rates))
            rows.append((name, float(pos.sum()), *figures))
        return [
            Table(
                "By label (at a probability of one half)",
                (
                    *("Label", "Tested", "AUC", "from", "to", "± by bins"),
                    *("Precision", "Recall", "F1", "Specificity"),
                ),
                rows,
            )
        ]


def _binary(targets: Tensor) -> bool:
    return bool(torch.all((targets == 0) | (targets == 1)))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _above(probabilities: Tensor, classes: tuple[str, ...]) -> list[str]:
    return [
        name for name, value in zip(classes, probabilities.tolist(), strict=True) if value > 0.5
    ]


def _words(has: Tensor, classes: tuple[str, ...]) -> str:
    return ", ".join(_above(has.float(), classes)) or "none"
