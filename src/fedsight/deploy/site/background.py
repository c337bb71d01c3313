"""Long work of a site service, in a thread of its own; its answer is waited for with a ticket."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError
from typing import Any

from fedsight.core.errors import SiteError
from fedsight.engines.remote import messages

ServiceAnswer = tuple[dict[str, Any], bytes | memoryview]
MAX_WAIT = 30.0  # seconds until a request for the state of some work is answered


class Background:
    """The latest work that was asked for, and its result."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        """`interrupt`: ends the work in progress."""
        self._interrupt = interrupt
        self._lock = threading.RLock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="work")
        # The latest work by ticket: what it is, and its result.
        self._tickets: dict[int, tuple[tuple[Any, ...], Future[ServiceAnswer]]] = {}

    def start(
        self, work: tuple[Any, ...], do: Callable[[], ServiceAnswer], fields: dict[str, Any]
    ) -> ServiceAnswer:
        """Start `work` unless it was started before; earlier work is abandoned."""
        with self._lock:
            ticket = self._find_ticket(work)
            if ticket is None:
                # What has not begun never does, so it is neither charged nor recorded.
                if any(not (one.cancel() or one.done()) for _, one in self._tickets.values()):
                    self._interrupt()
                ticket = max(self._tickets, default=0) + 1
                future = self._worker.submit(self._unless_abandoned, ticket, do)
                self._tickets = {ticket: (work, future)}
        return self.state(ticket, fields)

    def state(self, ticket: int, fields: dict[str, Any]) -> ServiceAnswer:
        """The answer when the work is done, with the first bytes of its vector, as many as the
        header has `room` for; or, after the header's `seconds`, that it is not done."""
        future = self.result(ticket)
        room = messages.whole_number({"room": 0, **fields}, "room", "the coordinator")
        with contextlib.suppress(TimeoutError):  # of this call, or raised by the work itself
            try:
                future.result(min(float(fields.get("seconds", 0)), MAX_WAIT))
            except CancelledError:
                raise _expired() from None
        if not future.done():
            return {"ticket": ticket, "done": False}, b""
        answer, data = future.result()
        return {**answer, "ticket": ticket, "done": True}, data[: min(room, messages.PIECE)]

    def result(self, ticket: int) -> Future[ServiceAnswer]:
        """What the work of `ticket` results in; SiteError if other work has taken its place."""
        if ticket not in self._tickets:
            raise _expired()
        return self._tickets[ticket][1]

    def close(self) -> None:
        """Start nothing any more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _unless_abandoned(self, ticket: int, do: Callable[[], ServiceAnswer]) -> ServiceAnswer:
        """Do the work of `ticket`, unless other work has taken its place since."""
        with self._lock:
            self.result(ticket)
        return do()

    def _find_ticket(self, work: tuple[Any, ...]) -> int | None:
        """The ticket of work that was started before: the first answer was lost on the way."""
        for ticket, (earlier, _) in self._tickets.items():
            if earlier == work:
                return ticket
        return None


def _expired() -> SiteError:
    return SiteError("this request has expired", "send it again")
