"""How the replies of a round become one update: the aggregator, and the setting that chooses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol, Self

from torch import Tensor

from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import PartSpecs, Payload


class Aggregator(Protocol):
    """Collects the replies of a round, on one process or on several that are merged.

    A reply is added whole or, with a SiteError that names its site, not at all. The result does not
    depend on the order in which replies are added or aggregators merged.
    """

    @property
    def count(self) -> int:
        """Replies added."""
        ...

    @property
    def weight(self) -> int:
        """Their total weight."""
        ...

    def clear(self, terms: int) -> None:
        """Start again from nothing, for at most `terms` replies."""
        ...

    def add(self, payload: Payload, weight: int, site: str) -> None:
        """Add one reply."""
        ...

    def merge(self, other: Self) -> None:
        """Add what another aggregator collected from other sites of the same cohort."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What has been collected, as it is kept; another process may be given this memory."""
        ...

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Another process has written what it collected from `count` sites into `tensors`."""
        ...

    def mean(self) -> dict[str, Tensor]:
        """The mean of each part, or what this rule takes for it, float64."""
        ...

    def plain(self) -> dict[str, Tensor]:
        """The weighted sum of each part, float64."""
        ...


class Aggregation(Settings, ABC):
    """How replies are combined: `[aggregation]` in the config. A new rule costs one file."""

    needs_replies: ClassVar[bool] = False  # whether it looks at single replies

    @abstractmethod
    def aggregator(
        self, specs: PartSpecs, terms: int, memory: Mapping[str, Tensor] | None = None
    ) -> Aggregator:
        """An empty aggregator for payloads of these parts and at most `terms` replies.

        `memory` are tensors like those of its `tensors`, shared with another process.
        """


aggregations: Registry[Aggregation] = Registry("aggregation", "fedsight.aggregation")
