"""The engine interface: it runs client steps and returns replies as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from fedsight.aggregation.base import Aggregator
from fedsight.core.types import Metrics, Order


@dataclass(frozen=True)
class Accepted:
    """A reply that was added: what the coordinator learns besides its contribution to the sum."""

    client: int
    site: str
    weight: int
    train_loss: float  # mean over the samples seen; NaN if it is protected


@dataclass(frozen=True)
class Rejected:
    """A client whose reply was refused, or never came."""

    client: int
    site: str
    cause: str


@dataclass(frozen=True)
class Counted:
    """The round that a reply counts in, and what its update is multiplied by."""

    round: int
    factor: float = 1.0


@dataclass(frozen=True)
class Earlier:
    """Clients of a buffered round that began with an earlier model, that of `order`, and what their
    updates are multiplied by."""

    order: Order
    clients: Sequence[int]
    factor: float


Arrival = Accepted | Rejected


@dataclass
class Outcome:
    """The sum of a round's replies, and who contributed."""

    total: Aggregator
    accepted: list[Accepted] = field(default_factory=list)  # by client
    rejected: dict[str, str] = field(default_factory=dict)  # site -> reason
    doubts: dict[str, str] = field(default_factory=dict)  # site -> why it may have cheated
    # sites on other machines that were sent all of the order's vector
    whole: set[str] = field(default_factory=set)

    def note(self, arrival: Arrival) -> None:
        """Record an arrival."""
        if isinstance(arrival, Accepted):
            self.accepted.append(arrival)
            self.rejected.pop(arrival.site, None)
        else:
            self.rejected[arrival.site] = arrival.cause


@dataclass
class Work:
    """Client steps in progress for one order; iterate over it to get the replies as they arrive.

    `outcome` holds what has arrived. After the last arrival `settle` completes the total (merges
    partial sums, removes masks).
    """

    outcome: Outcome
    arrivals: Iterator[Arrival]
    settle: Callable[[], None]

    def __iter__(self) -> Iterator[Arrival]:
        for arrival in self.arrivals:
            self.outcome.note(arrival)
            yield arrival
        self.outcome.accepted.sort(key=lambda one: one.client)
        self.settle()


class Engine(Protocol):
    """Runs client steps and measurements."""

    # Whether submitted work continues by itself while the coordinator writes the previous round.
    overlaps: ClassVar[bool]

    # Whether `measure` can look at the validation part.
    validates: ClassVar[bool]

    def submit(self, order: Order, cohort: Sequence[int], earlier: Sequence[Earlier] = ()) -> Work:
        """Start training the clients of `cohort` from `order`, and those of `earlier`, who are
        others, from theirs; no other work may be in progress.

        Raises SiteError when there are too few sites to start secure aggregation.
        """
        ...

    def measure(
        self,
        vector: Tensor,
        round: int,
        validation: bool = False,
        difference: Tensor | None = None,
    ) -> list[Metrics]:
        """The sums of each of the federation's views, for the model after `round`; with
        `validation`, of the views of `federation.validating`. `difference` is as in `Order`."""
        ...

    def close(self) -> None:
        """End worker processes."""
        ...


def collect(
    engine: Engine,
    order: Order,
    cohort: Sequence[int],
    on_arrival: Callable[[Arrival], None] = lambda _: None,
    meanwhile: Callable[[], None] = lambda: None,
    earlier: Sequence[Earlier] = (),
) -> Outcome:
    """Run a round: submit it, and wait for every client of it.

    `meanwhile` is called once the work is submitted, also if submitting fails.
    """
    try:
        work = engine.submit(order, cohort, earlier)
    finally:
        meanwhile()
    for arrival in work:
        on_arrival(arrival)
    return work.outcome
