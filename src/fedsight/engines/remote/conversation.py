"""One conversation of the coordinator with one site: questions that are asked again while the line
is broken, and answers that are checked before anything is made of them.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fedsight.core.errors import SiteError
from fedsight.engines.remote import messages

NAP = 5.0  # seconds that a site may take to say that it is not done yet
SILENCE = 30.0  # seconds without any answer after which a site is given up
LOOK = 0.5  # seconds between two looks at whether a site has left, or the deadline has passed
BREATH = 1.0  # seconds between two questions whether a site is done, at least
SLOW = 180.0  # seconds that one piece of a vector may take: 4 MiB over 0.2 Mbit/s


_marks = itertools.count(int(time.time() * 100))  # those of an earlier process were smaller


class Link(Protocol):
    """A line to the sites."""

    @property
    def sites(self) -> Sequence[str]:
        """The sites at its other end."""
        ...

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """One question, one answer (header, body), unchecked; ConnectionError if none comes."""
        ...


class Silent(Exception):  # noqa: N818 - a state of a site, told to the caller below
    """A site does not answer any more."""


class Talk:
    """One conversation with one site, until a deadline."""

    def __init__(
        self,
        link: Link,
        site: str,
        deadline: float,
        gone: Callable[[str], bool] = lambda _: False,
        stride: messages.Stride | None = None,
        budget: messages.Budget | None = None,
    ) -> None:
        self._link = link
        self.site = site
        self._deadline = deadline  # of time.monotonic()
        self._gone = gone  # whether the site is known to have left
        self._stride = stride or messages.Stride()  # what is known of the site's line
        self._budget = budget or messages.Budget()  # of all conversations together

    def ask(
        self, kind: str, header: Mapping[str, Any], body: bytes = b"", patience: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a question, asked again while the line is broken.

        Raises SiteError with the site's own words when it refuses or fails, or when the deadline
        has passed, and Silent after `patience` seconds (SILENCE) without an answer.
        """
        began, patience = time.monotonic(), SILENCE if patience is None else patience
        while True:
            now = time.monotonic()
            if now >= self._deadline:
                raise self._late()
            left = min(began + patience, self._deadline) - now
            if left <= 0:
                raise Silent(f"site '{self.site}' does not answer any more")
            try:
                text, data = self._answer(kind, header, body, left)
            except ConnectionError:
                time.sleep(min(1.0, left))
                continue
            return self._checked(text, data)

    def finish(self, kind: str, header: Mapping[str, Any], body: bytes = b"") -> dict[str, Any]:
        """Let the site begin something long, and wait until it is done."""
        asked = time.monotonic()
        answer, _ = self.ask(kind, {**header, "seconds": NAP}, body)
        ticket = messages.whole_number(answer, "ticket", self._sender)
        while answer.get("done") is not True:
            if answer.get("done") is not False:
                cause = f"{self._sender} does not say whether it is done"
                raise SiteError(cause, "let it run the same FedSight version as the coordinator")
            # An honest site has taken NAP to say so; one that says it at once is not asked at once.
            time.sleep(max(0.0, asked + BREATH - time.monotonic()))
            asked = time.monotonic()
            answer, _ = self.ask("wait", {"ticket": ticket, "seconds": NAP})
        return {**answer, "ticket": ticket}

    def send(self, name: str, data: memoryview) -> int:
        """Bring a vector to the site, piece by piece; returns the mark that it came under.

        Marks grow, so a piece that was long on its way cannot end up in a later vector.
        """
        mark = next(_marks)
        for start, stop in self._stride.pieces(len(data)):
            header = {"name": name, "mark": mark, "start": start, "total": len(data)}
            with self._turn(stop - start):
                self.ask("piece", header, bytes(data[start:stop]), SLOW)
        return mark

    def fetch(self, ticket: int, total: int) -> Iterator[bytes]:
        """The pieces of a vector of `total` bytes; SiteError unless it is exactly that."""
        for start, stop in self._stride.pieces(total):
            header = {"ticket": ticket, "start": start, "stop": stop}
            with self._turn(stop - start):
                _, piece = self.ask("fetch", header, b"", SLOW)
            if len(piece) != stop - start:
                raise SiteError(
                    f"{self._sender} sent {len(piece):,} bytes where {stop - start:,} were due",
                    "its reply was cut off, or it trains another model: compare the fingerprints",
                )
            yield piece

    def _answer(
        self, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """The line's answer; a site that has left is not waited for, and none beyond the deadline.

        A line that is waiting cannot be interrupted, and may wait for longer than `timeout` while
        an answer trickles in: it waits in a thread of its own, which is left to itself then.
        """
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def ask() -> None:
            try:
                found.put(self._link.ask(self.site, kind, header, body, timeout))
            except BaseException as error:  # handed over, whatever it is
                found.put(error)

        threading.Thread(target=ask, daemon=True, name=f"ask-{self.site}").start()
        while True:
            try:
                answer = found.get(timeout=LOOK)
            except queue.Empty:
                if self._gone(self.site):
                    raise Silent(f"site '{self.site}' has left") from None
                if time.monotonic() >= self._deadline:
                    raise self._late() from None
                continue
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _turn(self, size: int) -> Iterator[None]:
        """Room for a piece among those of all conversations."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._budget.take(size, self._deadline - time.monotonic()))
            except TimeoutError:
                raise SiteError(
                    f"the turn of {self._sender} did not come within rounds.deadline: the vectors "
                    "of other sites were on their way",
                    "look at the lines of the other sites that were rejected, or raise "
                    "rounds.deadline",
                ) from None
            yield

    def _late(self) -> SiteError:
        return SiteError(
            f"{self._sender} did not answer within rounds.deadline",
            "raise rounds.deadline, or look at the site's machine and its line",
        )

    @property
    def _sender(self) -> str:
        return f"site '{self.site}'"

    def _checked(self, text: Any, data: Any) -> tuple[dict[str, Any], bytes]:
        fields = messages.read_header(text, self._sender)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise SiteError(f"{self._sender} sent no bytes", "let it run the same FedSight version")
        error = fields.get("error")
        if error is not None:
            cure = fields.get("cure")
            raise SiteError(f"{self._sender}: {str(error)[:500]}", str(cure or "")[:500])
        return fields, bytes(data)


def converse(talks: Sequence[Talk], one: Callable[[Talk], None]) -> dict[str, SiteError | Silent]:
    """Hold all conversations at once; how those ended that failed, by site."""
    failed: dict[str, SiteError | Silent] = {}

    def run(talk: Talk) -> None:
        try:
            one(talk)
        except (SiteError, Silent) as error:
            failed[talk.site] = error

    if talks:
        with ThreadPoolExecutor(len(talks), thread_name_prefix="talk") as pool:
            list(pool.map(run, talks))
    return failed


def reason(error: SiteError | Silent) -> str:
    """Why a conversation failed, in a sentence."""
    return error.cause if isinstance(error, SiteError) else str(error)
