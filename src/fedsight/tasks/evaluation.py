"""What a task measures: sums that add over batches and sites, and figures made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedsight.core.errors import Problem
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.tasks.covering.base import Covering


class Evaluation(ABC):
    """The part of a task that evaluation uses.

    Engines and sites call `measure`, the evaluator `summary`. A coordinator without images calls
    `blank` to learn which sums to expect, and `check_tested` runs before training.
    """

    headline: ClassVar[str] = (
        "accuracy"  # the figure for comparing models: 0 to 1, higher is better
    )
    headline_title: ClassVar[str] = "Accuracy"  # its name in reports
    figures: ClassVar[tuple[str, ...]] = ()  # besides the headline, what `summary` always gives
    worse: ClassVar[frozenset[str]] = frozenset({"loss"})  # of these, those that are better low
    whole: ClassVar[bool] = False  # `measure` gets all test images of a site at once (pairs)
    # whether `measure` takes degraded images too (`Batch.degraded`) where trust.robustness asks for
    # them; only for tasks that measure images as a `whole`
    probes: ClassVar[bool] = False
    mixes: ClassVar[bool] = True  # whether `summary` heeds a label mix
    scores_all: ClassVar[bool] = False  # noised sums say nothing of classes that are not scored
    asks_head: ClassVar[bool] = True  # whether predictions on test images use the head
    # how its answers are made large enough to cover the truth; None: they are not, or by a set of
    # classes (`scored` and `classed`)
    covering: ClassVar[Covering | None] = None

    @property
    def share(self) -> bool:
        """Whether the headline is the share of images answered right, which `right` tells."""
        return False

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """The sums that `summary` needs. They add over batches and sites."""

    @abstractmethod
    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """Figures such as accuracy and loss, including the headline; NaN where not measured.

        With `mix` [classes], which sums to 1: the figures under these label proportions.
        """

    def intervals(self, sums: Mapping[str, Sum]) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of figures of `summary` over other test images, as far as the sums
        tell them; `sums` are exact, or repaired."""
        return {}

    def occurring(self, sums: Mapping[str, Sum]) -> npt.NDArray[np.bool_]:
        """Which classes [n] the images of these sums show, or the answers to them, if its headline
        is a mean over classes; a class that hardly any image shows has no spread."""
        confusion = sums.get("confusion")
        return np.zeros(0, bool) if confusion is None else confusion.total.sum(axis=1) > 0

    def measures(self) -> tuple[str, ...]:
        """The names of the figures by which a round can be chosen."""
        return tuple(dict.fromkeys((self.headline, *self.figures)))

    def falling(self) -> frozenset[str]:
        """Those of them that are better when they are lower."""
        return self.worse

    def is_possible(self, sums: Mapping[str, Sum], pixels: int) -> bool:
        """Whether a model can have these exact sums, of images of `pixels` pixels. They may come
        from a machine that makes them up."""
        return True

    def right(self, model: nn.Module, batch: Batch) -> Tensor:
        """Whether the answer to each image is right [b], for a task whose headline is a `share`."""
        raise NotImplementedError(f"the headline of {type(self).__name__} is no share of images")

    def replicates(self, sums: Mapping[str, Sum]) -> list[float]:
        """The headline for images drawn again and again, the same ones for every model; for tasks
        that measure a site's images as a `whole`. Empty: its spread is not known."""
        return []

    def bounds(self, classes: int, pixels: int) -> Mapping[str, float] | None:
        """The norm to which one image's share of each condensed sum is clipped, by name, where
        figures are noised; `pixels` is the size of an image.

        None: what an image adds to this task's figures has no bound, so they cannot be noised.
        """
        return None

    def condensed(self, sums: Mapping[str, Sum]) -> dict[str, Sum]:
        """The sums in the form in which they are noised, with fewer numbers, because every number
        gets noise. It is linear, and not negative for one image."""
        return dict(sums)

    def repaired(self, sums: Mapping[str, Sum], deviation: Mapping[str, float]) -> dict[str, Sum]:
        """Condensed sums with noise of this standard deviation in each number, made plausible and
        brought back into the form that `summary` uses; no image is looked at."""
        return dict(sums)

    def units(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The unit [n] of each test image with a label [n]; for noised figures the images of one
        unit are measured together, and apart from all others. Here each image is one.

        A unit may depend on nothing but the labels of its own images.
        """
        return np.arange(len(labels))

    def check_tested(self, tested: Mapping[str, npt.NDArray[np.int64]]) -> list[Problem]:
        """Problems with the labels [n] of the images that are tested together, by site."""
        return []

    def blank(self, classes: int) -> Tensor:
        """The target [1, ...] of a black image, which a coordinator without images measures."""
        return torch.zeros(1, dtype=torch.int64)
