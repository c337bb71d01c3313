"""The engine interface: it runs client steps and returns replies as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

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
    bytes: int = 0  # of its vectors, as they were encoded


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


@dataclass(frozen=True)
class Buffer:
    """How a buffered round ends that real time decides: with so many good `replies`, while at most
    `most` sites train at the same time."""

    replies: int
    most: int


@dataclass
class Course:
    """How a buffered round went in real time."""

    begun: int = 0  # orders that were sent in it
    late: int = 0  # replies that came too late to count
    # by site: the round after which the model was made that its counted reply began with
    began: dict[str, int] = field(default_factory=dict)
    # by site: seconds between its order and its counted reply, a restart of the run not included
    took: dict[str, float] = field(default_factory=dict)
    under_way: dict[str, int] = field(default_factory=dict)  # as `began`, of sites that still train


Arrival = Accepted | Rejected


@dataclass
class Outcome:
    """The sum of a round's replies, and who contributed."""

    total: Aggregator
    accepted: list[Accepted] = field(default_factory=list)  # by client
    rejected: dict[str, str] = field(default_factory=dict)  # site -> reason
    doubts: dict[str, str] = field(default_factory=dict)  # site -> why it may have cheated
    course: Course | None = None  # of a buffered round that real time decides
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


@runtime_checkable
class RealTimeEngine(Engine, Protocol):
    """An engine whose sites take real time: in buffered rounds it decides whose replies count.

    `unmeasured` says why sites are not in the figures of the last model that was measured."""

    unmeasured: Mapping[str, str]

    def fill(
        self, order: Order, free: Sequence[int], earlier: Sequence[Earlier], buffer: Buffer
    ) -> Work:
        """A buffered round: clients of `free` that have nothing to do begin with `order`, in this
        order, and those of `earlier` go on with theirs, or begin with it again if this engine knows
        nothing of it. The work ends when the buffer is full or nobody is left to wait for; sites
        that train then go on, for later rounds."""
        ...

    def abandon(self) -> None:
        """Wait for no site any more: no round follows."""
        ...


def collect(
    engine: Engine,
    order: Order,
    cohort: Sequence[int],
    on_arrival: Callable[[Arrival], None] = lambda _: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a synchronous round, and wait for every client of it; see `gathered`."""
    return gathered(lambda: engine.submit(order, cohort), on_arrival, meanwhile)


def gathered(
    submit: Callable[[], Work],
    on_arrival: Callable[[Arrival], None] = lambda _: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a round: `submit` it, and wait until its work ends.

    `meanwhile` is called once the work is submitted, also if submitting fails.
    """
    try:
        work = submit()
    finally:
        meanwhile()
    for arrival in work:
        on_arrival(arrival)
    return work.outcome
