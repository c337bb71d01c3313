"""The task: loss, measures that add over batches and sites, predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor, nn

from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import Batch, Metrics, Sum
from fedsight.data.base import Dataset
from fedsight.models.base import Network
from fedsight.tasks.presentation import Answer, Curve, Sample, Table


class Task(Settings, ABC):
    """What is learnt: `[task]` in the config. A new one costs one file in `tasks/`.

    A task that tells one class of each image needs the first four methods only.
    """

    headline: ClassVar[str] = "accuracy"  # the figure that models are compared by: 0 to 1, more is
    headline_title: ClassVar[str] = "Accuracy"  # better; and how reports call it
    takes: ClassVar[str] = "scores"  # what the network must give: a `Model.gives`
    placed: ClassVar[bool] = False  # targets say where in the image things are
    whole: ClassVar[bool] = False  # `measure` gets all test images of a site at once (pairs)
    asks_head: ClassVar[bool] = True  # whether test answers go through the network's head

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss, scalar, mean over the batch."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch, classes: int) -> Metrics:
        """Sums from which `summary` makes figures; they add over batches and sites."""

    @abstractmethod
    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """Figures such as accuracy and loss, the headline among them; NaN: not measured.

        `mix` [classes], summing to 1: figures as they would be under these label proportions.
        """

    @abstractmethod
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Probabilities [b, classes] for normalised images [b, c, h, w]."""

    def check(self, dataset: Dataset) -> list[Problem]:
        """What the task misses in the data: here, that every image has one label and no more."""
        if dataset.train.targets is None:
            return []
        cause = f"the task '{self.registered}' learns one label per image, the data have targets"
        return [Problem("task.name", cause, "name the task that these data are for")]

    def check_tested(self, tested: Mapping[str, npt.NDArray[np.int64]]) -> list[Problem]:
        """What the task misses in the labels [n] of images that are tested together, by site."""
        return []

    def blank(self, classes: int) -> Tensor:
        """The target [1, ...] of one black image: what a coordinator without images measures."""
        return torch.zeros(1, dtype=torch.int64)

    def check_network(self, network: Network) -> list[Problem]:
        """What the task misses in the network."""
        return []

    def begin(self, model: nn.Module, labels: Tensor, draws: Generator) -> None:
        """Before a site trains in a round: its images' class numbers [n], and the site's own
        draws, which are the same in every round."""

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """What becomes of a tensor, after the algorithm said `kind`: here, just that."""
        return kind

    def answers(self, model: nn.Module, x: Tensor, classes: tuple[str, ...]) -> list[Answer]:
        """What the model says of normalised images [b, c, h, w]: the most probable class each."""
        return [_ranked(row, classes) for row in self.predict(model, x).tolist()]

    def samples(self, model: nn.Module, batch: Batch, classes: tuple[str, ...]) -> list[Sample]:
        """Test images with the model's answers; the report shows mistakes first, surest first."""
        probabilities = self.predict(model, batch.x)
        sure, predicted = probabilities.max(1)
        truths = probabilities.gather(1, batch.y[:, None]).squeeze(1)
        order = torch.argsort(sure, descending=True, stable=True).tolist()
        return [
            Sample(
                positions=(at,),
                truth=classes[int(batch.y[at])],
                predicted=classes[int(predicted[at])],
                probability=float(sure[at]),
                right=bool(predicted[at] == batch.y[at]),
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
        """Tables for the report that tell sites apart, from the sums of each, where there are."""
        return []


def _ranked(probabilities: list[float], classes: tuple[str, ...]) -> Answer:
    # Equal probabilities keep the order of the classes, as argmax would have it.
    ranked = sorted(zip(classes, probabilities, strict=True), key=lambda pair: -pair[1])
    label, probability = ranked[0]
    return Answer(label, probability, {"probabilities": dict(ranked)})


tasks: Registry[Task] = Registry("task", "fedsight.tasks")
