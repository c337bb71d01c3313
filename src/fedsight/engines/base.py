"""What an engine does, and what it gives back for a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedsight.aggregation.mean import PayloadSum
from fedsight.aggregation.secure import SecureSum
from fedsight.core.types import Metrics, Order

Total = PayloadSum | SecureSum


@dataclass(frozen=True)
class Note:
    """What the coordinator learns of one reply besides its share of the sum."""

    client: int
    site: str
    weight: int
    train_loss: float  # mean over the samples seen; NaN if it is protected


@dataclass
class Outcome:
    """A round's sum and who contributed to it."""

    total: Total
    notes: list[Note] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)  # site -> reason


class Engine(Protocol):
    """Runs client steps and measurements."""

    def train(self, order: Order, cohort: Sequence[int], on_reply: Callable[[], None]) -> Outcome:
        """One round of local training; `on_reply` is called whenever a client is done."""
        ...

    def measure(self, vector: Tensor, round: int) -> list[Metrics]:
        """The sums of each of the federation's views, for the model after `round`."""
        ...

    def close(self) -> None:
        """End worker processes."""
        ...
