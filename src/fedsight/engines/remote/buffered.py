"""Buffered rounds over a connection (FedBuff): sites train from the model that they were last sent,
and the first replies to come make a round.

A site has at most one order at a time. Its reply waits in a temporary file until a round takes it,
the one in progress or the next, and is weighted by how old its model is then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from fedsight.core.errors import SiteError
from fedsight.core.types import Order
from fedsight.engines.base import Accepted, Arrival, Buffer, Course, Earlier, Outcome, Rejected
from fedsight.program.federation import Federation

ATTEMPTS = 2  # times that a site is sent an order in a round, if it fails but is still connected
END_TIMEOUT = 5.0  # seconds for a conversation to notice that nobody waits for it any more


@dataclass
class Assignment:
    """An order that a site was sent, and what has become of it."""

    client: int
    site: str
    order: Order
    attempts: int = 1  # in this round
    since: float = 0.0  # of time.monotonic()
    took: float = 0.0  # seconds, once it has ended
    stopped: threading.Event = field(default_factory=threading.Event)  # nobody waits for it
    reply: Accepted | None = None
    spool: IO[bytes] | None = None  # the vectors of its reply
    cause: str = ""  # why there is no reply
    overdue: bool = False  # whether that is because it has taken too long
    fault: BaseException | None = None  # this machine's own, not the site's
    thread: threading.Thread | None = None
    _ended: bool = False  # the conversation
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> int:
        """The round after which its model was made."""
        return self.order.round - 1

    def end(self) -> None:
        """The conversation has ended."""
        self.took = time.monotonic() - self.since
        with self._lock:
            self._ended = True
            if self.stopped.is_set():
                self.close()

    def stop(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self.stopped.set()
            if self._ended:  # else the conversation uses the file
                self.close()

    def close(self) -> None:
        """Remove the temporary file."""
        if self.spool is not None:
            self.spool.close()


class Answered:
    """Which orders sites' counted replies answered; at first those of `accepted`, by site."""

    def __init__(self, accepted: Mapping[str, int]) -> None:
        self._accepted = dict(accepted)
        # by site: (round in which a reply counted, round of its order), the oldest first
        self._counted: dict[str, list[tuple[int, int]]] = {}

    def note(self, site: str, round: int, order: int) -> None:
        """A reply to the order of round `order` has counted in `round`."""
        self._of(site).append((round, order))

    def durable(self, site: str, round: int) -> int:
        """The order that the site's last reply in rounds up to `round` answered.

        What a site remembered with it must stay there as long as that is the checkpoint's round: a
        resumed run may have the site train from it once more.
        """
        known = self._of(site)
        while len(known) > 1 and known[1][0] <= round:
            known.pop(0)
        return known[0][1]

    def _of(self, site: str) -> list[tuple[int, int]]:
        return self._counted.setdefault(site, [(0, self._accepted.get(site, 0))])


class BufferedRounds:
    """The assignments under way, and the rounds that their replies make.

    `hold` sends a site its order and waits for its reply or the cause why there is none; `add` adds
    a reply times a factor, and raises SiteError for one that is not valid; `there` says whether a
    site still answers.
    """

    def __init__(
        self,
        federation: Federation,
        hold: Callable[[Assignment], None],
        add: Callable[[Assignment, float], None],
        there: Callable[[str], bool],
    ) -> None:
        self._federation = federation
        self._hold, self._add, self._there = hold, add, there
        self._under_way: dict[str, Assignment] = {}  # by site
        self._ended: queue.SimpleQueue[Assignment] = queue.SimpleQueue()

    @property
    def busy(self) -> frozenset[str]:
        """The sites that train, or whose reply waits for a round."""
        return frozenset(self._under_way)

    def arrivals(
        self,
        order: Order,
        free: Sequence[int],
        earlier: Sequence[Earlier],
        buffer: Buffer,
        outcome: Outcome,
    ) -> Iterator[Arrival]:
        """The replies that fill the buffer of the round of `order`: see `RealTimeEngine.fill`.

        A site that fails, but not because it takes too long, is asked once more; if it fails again,
        it has to wait for the next round.
        """
        outcome.course = course = Course()
        factors = {one.order.round: one.factor for one in earlier} | {order.round: 1.0}
        given = [*((client, one.order) for one in earlier for client in one.clients)]
        given += [(client, order) for client in free]
        made = [Assignment(client, self._federation.name(client), of) for client, of in given]
        waiting = deque(one for one in made if one.site not in self._under_way)
        while len(outcome.accepted) < buffer.replies:
            while waiting and len(self._under_way) < buffer.most:
                self._begin(waiting.popleft(), course)
            if not self._under_way:
                break  # nobody is left to wait for
            one = self._next()
            late = one.order.round not in factors
            arrival = self._too_late(one, order.round) if late else self._taken(one, factors)
            if isinstance(arrival, Accepted):
                course.began[one.site], course.took[one.site] = one.version, one.took
            elif late:
                course.late += one.reply is not None
                waiting.append(Assignment(one.client, one.site, order))
            elif one.attempts < ATTEMPTS and not one.overdue and self._there(one.site):
                waiting.append(Assignment(one.client, one.site, order, one.attempts + 1))
            yield arrival
        course.under_way = {one.site: one.version for one in self._under_way.values()}

    def abandon(self, wait: bool = True) -> None:
        """Wait for no assignment any more; with `wait`, until the conversations have ended, so that
        none of their questions comes between later ones."""
        left, self._under_way = self._under_way, {}
        for one in left.values():
            one.stop()
        for one in left.values():
            if wait and one.thread is not None:
                one.thread.join(END_TIMEOUT)

    def _begin(self, one: Assignment, course: Course) -> None:
        """Send a site its order."""
        self._under_way[one.site] = one
        course.begun += self._there(one.site)
        one.since = time.monotonic()

        def run() -> None:
            try:
                self._hold(one)
            except BaseException as error:  # raised again where the replies are awaited
                one.fault = error
            one.end()
            self._ended.put(one)

        name = f"order-{one.order.round}-{one.site}"
        one.thread = threading.Thread(target=run, name=name, daemon=True)
        one.thread.start()

    def _next(self) -> Assignment:
        """The next assignment to end; what went wrong on this machine is raised."""
        while (one := self._ended.get()).stopped.is_set():
            pass
        del self._under_way[one.site]
        if one.fault is not None:
            one.close()
            raise one.fault
        return one

    def _taken(self, one: Assignment, factors: dict[int, float]) -> Arrival:
        """Add a reply to the round."""
        try:
            if one.reply is None:
                return Rejected(one.client, one.site, one.cause)
            self._add(one, factors[one.order.round])
            return one.reply
        except SiteError as error:
            return Rejected(one.client, one.site, error.cause)
        finally:
            one.close()

    def _too_late(self, one: Assignment, round: int) -> Rejected:
        one.close()
        stale = self._federation.program.rounds.too_stale(round - one.order.round)
        return Rejected(one.client, one.site, one.cause or stale)
