"""What a site can get at the end of a run: kinds of models, one file each in this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.program.program import Speed

SHARED, ALONE = "shared", "alone"  # the kinds that others are compared with

# What a deployed site chooses by: `chosen_on`.
VALIDATION, HALF_OF_TEST = "validation part", "half of the test part"


@dataclass(frozen=True)
class SiteModels:
    """What a site has when a run ends: a client with its images, and two models, as vectors [size]
    of that client's layout; `alone` is None where the site has trained none by itself.

    `offsets` [classes] are the logarithms of how much more frequent each class is at the site than
    in the whole federation; None where the task does not score classes.
    """

    client: Client
    speed: Speed
    shared: Tensor
    alone: Tensor | None
    offsets: Tensor | None

    def load(self, vector: Tensor) -> Client:
        """The client with `vector` [size] as its model."""
        layout = self.client.layout
        personal = {"personal": vector[layout.personal]}
        self.client.load(vector[layout.travelling], personal)
        return self.client


@dataclass(frozen=True)
class Candidate:
    """A model that a site could get: `vector` [size], and with which settings it was made."""

    kind: str
    vector: Tensor
    settings: Mapping[str, float] = field(default_factory=dict)


class Delivery(Settings, ABC):
    """A kind of model that a site can get. A new one takes one file in this package.

    Of models that are equally good the one that is `nearest` the shared model is taken.
    """

    nearest: ClassVar[int]

    @abstractmethod
    def candidates(self, at: SiteModels) -> Iterable[Candidate]:
        """The models of this kind; none where it does not suit the task or the network."""


deliveries: Registry[Delivery] = Registry("kind of delivery", "fedsight.evaluation.delivery")
