"""AUC: how well the probability of each class tells its images from those of all others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.types import Sum
from fedsight.tasks.metrics.base import Metric, Mix, metrics
from fedsight.tasks.plausible import are_counts
from fedsight.tasks.roc import auc, auc_interval, histogram

BINS = 2048  # the error of an area is at most half the share of pairs within one bin


@metrics.add("auc", source="Hand and Till 2001, doi:10.1023/A:1010920819831; Fawcett 2006")
class Auc(Metric):
    """Mean area under the ROC curves of each class against all others (one-vs-rest, macro).

    Sites send counts of scores by class, 16,384 numbers for four classes, never the score of an
    image. These have no bound that noise could be sized for, so noised figures cannot have it.
    """

    def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
        """Counts of scores [classes, 2 (images of the class, all others), bins].

        A score is x / (4 + |x|) of the logit x of the class's probability: bins are narrow where
        scores bunch.
        """
        logits = torch.logit(probabilities.double(), eps=1e-12)
        scores = logits / (4 + logits.abs())
        total = np.zeros((classes, 2, BINS))
        for label in range(classes):
            own = targets == label
            for side, chosen in enumerate((own, ~own)):
                total[label, side] = histogram(scores[chosen, label], BINS, low=-1.0).numpy()
        return Sum(total, len(targets))

    def value(self, sum: Sum, mix: Mix | None) -> float:
        """The mean area over the classes that test images have and, with `mix`, that occur in it.

        An area does not depend on how frequent its class is.
        """
        areas = np.array([auc(*pair) for pair in sum.total])
        seen = ~np.isnan(areas) if mix is None else ~np.isnan(areas) & (mix > 0)
        return float(areas[seen].mean()) if seen.any() else float("nan")

    def interval(self, sum: Sum) -> tuple[float, float] | None:
        """The mean of the classes' bounds (Hanley and McNeil 1982): as if their errors, which the
        counts do not tell, all went the same way. So it is wide rather than short."""
        bounds = np.array([auc_interval(*pair) for pair in sum.total])
        known = bounds[~np.isnan(bounds).any(axis=1)]
        return (float(known[:, 0].mean()), float(known[:, 1].mean())) if len(known) else None

    def is_possible(self, sum: Sum, images: npt.NDArray[np.float64]) -> bool:
        """In each class, one score of every image: as many of its own as it has."""
        own, others = sum.total.sum(axis=2).T
        whole = np.array_equal(own, images) and np.array_equal(
            own + others, len(own) * [images.sum()]
        )
        return bool(whole) and are_counts(sum.total)
