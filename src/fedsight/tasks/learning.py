"""The part of a task that training uses: the loss, and what it requires of data and network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.core.types import Batch
from fedsight.data.augment.base import Mixture
from fedsight.data.base import Dataset
from fedsight.models.base import Network


class Learning(ABC):
    """The part of a task that training uses.

    The client step calls `begin` and `loss`, the program `kind`, `check` and `check_network`. A
    task that only trains differently overrides nothing else.
    """

    registered: ClassVar[str | None]
    takes: ClassVar[str] = "scores"  # what the network must return: a `Model.gives`
    placed: ClassVar[bool] = False  # targets are tied to positions in the image
    scored: ClassVar[bool] = False  # the network scores each class, and an image has the highest
    classed: ClassVar[bool] = False  # an image has one class, by which training images are drawn

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss, scalar, mean over the batch.

        Under DP-SGD it is called with one image at a time, a batch of size 1.
        """

    def soft(self, targets: Tensor, classes: int) -> Tensor:
        """Targets [b, ...] as numbers of which means are targets too: for mixed images.

        A class that overrides `loss` so that it takes them overrides this as well.
        """
        raise NotImplementedError(f"the task '{self.registered}' cannot mix images")

    def mixed(self, batch: Batch, mixture: Mixture | None, classes: int) -> Batch:
        """The batch of mixed images with their targets mixed alike; None: nothing was mixed."""
        if mixture is None:
            return batch
        hidden = batch.unlabelled
        if hidden is not None:  # what one of two images may show, their mixture may
            hidden = mixture.of(hidden.float()) > 0
        return Batch(batch.x, mixture.of(self.soft(batch.y, classes)), hidden)

    @property
    def blends(self) -> bool:
        """Whether `loss` takes means of targets: the class that defines it defines `soft` too."""
        owner = _owner(type(self), "loss")
        return owner is not Learning and owner is _owner(type(self), "soft")

    # whether `loss` and `measure` of the class that says so heed `batch.unlabelled`
    heeds_unlabelled: ClassVar[bool] = False

    @property
    def masks(self) -> bool:
        """Whether classes that a site does not label are left out of the loss: the class that
        defines it says so."""
        owner = _owner(type(self), "loss")
        return bool(owner is not None and vars(owner).get("heeds_unlabelled", False))

    def at(self, labels: Tensor, classes: int) -> Self:
        """The task as a site trains it whose images have the class numbers `labels` [n]."""
        return self

    # whether `loss` asks the model for nothing but what it makes of `batch.x`, so that several
    # models can be stacked
    stacks: ClassVar[bool] = False

    @property
    def counts_labels(self) -> bool:
        """Whether `at` depends on the labels: the loss of an image on those of all others."""
        return False

    @property
    def counts_images(self) -> bool:
        """Whether `at` depends on how many images a site has, and not on the classes' shares of
        them alone: a site that has each image twice then trains otherwise."""
        return False

    def begin(  # noqa: B027 - most tasks have nothing to prepare
        self, model: nn.Module, labels: Tensor, draws: np.random.Generator
    ) -> None:
        """Prepare `model` before a site trains in a round.

        `labels` [n] are the class numbers of the site's images. `draws` starts alike in every
        round. At a site of a deployed federation nobody else can repeat them; in a simulation they
        follow from the program's seed and the site's name.
        """

    @property
    def prepares(self) -> bool:
        """Whether `begin` does anything."""
        return type(self).begin is not Learning.begin

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """The kind of the tensor `name`, for which the algorithm chose `kind`."""
        return kind

    def check_settings(self) -> list[Problem]:
        """Problems with the task's own settings, before any data are read."""
        return []

    def check(self, dataset: Dataset) -> list[Problem]:
        """Problems with the data; here, that they do not have exactly one label per image."""
        if dataset.train.targets is None:
            return []
        cause = (
            f"the task '{self.registered}' learns one label per image, but the data come with "
            "other targets"
        )
        return [Problem("task.name", cause, "choose the task that these data are made for")]

    def check_network(self, network: Network) -> list[Problem]:
        """Problems with the network."""
        return []

    @property
    def compares(self) -> bool:
        """Whether an image teaches only beside others of its batch."""
        return False

    def check_trained(self, trained: Mapping[str, npt.NDArray[np.int64]]) -> list[Problem]:
        """Problems with the class numbers [n] of the images that each site trains on, by site."""
        return []

    def notes(self, trained: Mapping[str, npt.NDArray[np.int64]]) -> tuple[str, ...]:
        """What to say of the same, where it is no problem."""
        return ()


def _owner(cls: type, name: str) -> type | None:
    """The class that defines `name` for `cls`."""
    return next((one for one in cls.__mro__ if name in vars(one)), None)
