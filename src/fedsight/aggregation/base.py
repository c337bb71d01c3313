"""Aggregation: how the replies of a round become one update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol, Self

from torch import Tensor

from fedsight.core.registry import Registry
from fedsight.core.settings import Settings
from fedsight.core.types import PartSpecs, Payload


class Aggregator(Protocol):
    """Collects the replies of a round, in one process or in several that are merged.

    A reply is added whole, or not at all with a SiteError that names its site. The result does not
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
        """Reset, for at most `terms` replies."""
        ...

    def add(self, payload: Payload, weight: int, site: str, factor: float = 1.0) -> None:
        """Add one reply, its vectors times `factor`; integer parts are added as they are."""
        ...

    def merge(self, other: Self) -> None:
        """Add what another aggregator collected from other sites of the same cohort."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The memory that holds the collected replies; it may be shared with another process."""
        ...

    def filled(self, terms: int, count: int, weight: int) -> None:
        """Note that another process has collected the replies of `count` sites in `tensors`."""
        ...

    def mean(self) -> dict[str, Tensor]:
        """The mean of each part but the integer ones, or this rule's substitute, float64."""
        ...

    def plain(self) -> dict[str, Tensor]:
        """The weighted sum of each part but the integer ones, float64."""
        ...

    def integers(self) -> dict[str, Tensor]:
        """The sum of each integer part, int64, in its shape; none for a rule that forms no sum."""
        ...


class Aggregation(Settings, ABC):
    """How replies are combined: `[aggregation]` in the config. A new rule costs one file."""

    needs_replies: ClassVar[bool] = False  # whether it needs single replies

    @abstractmethod
    def aggregator(
        self, specs: PartSpecs, terms: int, memory: Mapping[str, Tensor] | None = None
    ) -> Aggregator:
        """An empty aggregator for payloads of these parts and at most `terms` replies.

        `memory` holds tensors like those of `Aggregator.tensors`, shared with another process.
        """


aggregations: Registry[Aggregation] = Registry("aggregation", "fedsight.aggregation")
