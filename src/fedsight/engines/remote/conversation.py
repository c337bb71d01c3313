"""One conversation of the coordinator with one site: questions are repeated while the connection
is broken, and answers are checked before use.

Whatever goes wrong while an answer is received or read is that site's failure. It ends the
conversation with the site, never the job.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fedsight.core.errors import EngineError, FedSightError, HeldError, RefusedError, SiteError
from fedsight.core.text import MAX_MESSAGE, printable
from fedsight.engines.remote import messages

LONG_POLL = 5.0  # seconds after which a site must answer, if only that it is not done yet
SILENCE = 30.0  # seconds without any answer after which a site is given up
CHECK_INTERVAL = 0.5  # seconds between checks whether a site has left or the deadline has passed
MIN_POLL = 1.0  # minimum seconds between two questions whether a site is done
PIECE_TIMEOUT = 180.0  # seconds for one piece of a vector: 4 MiB over 0.2 Mbit/s
log = logging.getLogger(__name__)

_marks = itertools.count(int(time.time() * 100))  # larger than those of any earlier process


class Link(Protocol):
    """A connection to the sites."""

    @property
    def sites(self) -> Sequence[str]:
        """The sites at the other end."""
        ...

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """The unchecked answer (header, body) to one question; ConnectionError without one, and
        JobEndedError if nobody can be asked any more."""
        ...


class JobEndedError(EngineError):
    """The job is over for everybody: the server ended it, as it does when one of its processes
    dies."""

    def __init__(self) -> None:
        super().__init__(
            "the server has ended the job, as it does when a process of one of its sites dies",
            "continue with `fedsight resume`",
        )


class Silent(Exception):  # noqa: N818 - a state of a site, handled by `converse`
    """A site has stopped answering."""


class Talk:
    """One conversation with one site, until a deadline."""

    def __init__(
        self,
        link: Link,
        site: str,
        deadline: float,
        gone: Callable[[str], bool] = lambda _: False,
        sizers: messages.Sizers | None = None,
        budget: messages.Budget | None = None,
    ) -> None:
        self._link = link
        self.site = site
        self._deadline = deadline  # of time.monotonic()
        self._gone = gone  # whether the site is known to have left
        self._sizers = sizers or messages.Sizers()  # adapted to the site's connection
        self._budget = budget or messages.Budget()  # shared by all conversations
        # The last piece of a vector, which goes with the next question, and what it is.
        self._last: tuple[dict[str, Any], memoryview] | None = None
        self._room = 0  # bytes of the last answer's vector that were to come with it
        self._came = b""  # what came

    def ask(
        self,
        kind: str,
        header: Mapping[str, Any],
        body: bytes = b"",
        patience: float | None = None,
        limits: messages.HeaderLimits = messages.HEADER,
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a question, which is repeated while the connection is broken.

        `limits` are those of the answer's header. Raises SiteError with the site's own message
        when it refuses or fails, SiteError when the deadline has passed, and Silent after
        `patience` seconds (SILENCE) without an answer.
        """
        began, patience = time.monotonic(), SILENCE if patience is None else patience
        while True:
            now = time.monotonic()
            if now >= self._deadline:
                raise self._late()
            left = min(began + patience, self._deadline) - now
            if left <= 0:
                raise Silent(f"site '{self.site}' has stopped answering")
            try:
                text, data = self._answer(kind, header, body, left)
            except ConnectionError:
                self._sizers.shrink()
                if self._gone(self.site):
                    raise Silent(f"site '{self.site}' has left") from None
                time.sleep(min(1.0, left))
                continue
            return self._checked(text, data, limits)

    def finish(
        self,
        kind: str,
        header: Mapping[str, Any],
        limits: messages.HeaderLimits = messages.HEADER,
        size: int = 0,
    ) -> dict[str, Any]:
        """Start a long operation at the site, and wait until it is done.

        `size`: the most bytes of its vector, which `fetch` is to return.
        """
        asked = time.monotonic()
        self._room = size if self._sizers.up.fits(size) else 0
        answer = self._poll(kind, header, limits)
        ticket = messages.whole_number(answer, "ticket", self._sender)
        while answer.get("done") is not True:
            if answer.get("done") is not False:
                cause = f"{self._sender} did not say whether it is done"
                cure = "run the same FedSight version there as at the coordinator"
                raise SiteError(cause, cure)
            # An honest site waits LONG_POLL before it answers "not done"; a site that answers at
            # once must not be polled without a pause.
            time.sleep(max(0.0, asked + MIN_POLL - time.monotonic()))
            asked = time.monotonic()
            answer = self._poll("wait", {"ticket": ticket}, limits)
        return {**answer, "ticket": ticket}

    def _poll(
        self, kind: str, header: Mapping[str, Any], limits: messages.HeaderLimits
    ) -> dict[str, Any]:
        """The answer to a question about a long operation, after LONG_POLL or less.

        Vectors travel along if there are any, but by themselves if nothing has come for a third of
        SILENCE: the line may have become slow, and a piece by itself may take longer.
        """
        left = SILENCE
        if self._last is not None or self._room:
            try:
                return self._polled(kind, header, limits, SILENCE / 3)
            except Silent:
                if self._gone(self.site):
                    raise
            self._room, left = 0, SILENCE - SILENCE / 3
            self._send_last()
        return self._polled(kind, header, limits, left)

    def _polled(
        self,
        kind: str,
        header: Mapping[str, Any],
        limits: messages.HeaderLimits,
        patience: float,
    ) -> dict[str, Any]:
        where, piece = self._last or ({}, b"")
        along = {"piece": where} if self._last else {}
        how = {**header, **along, "seconds": LONG_POLL, "room": self._room}
        # The bytes go when they are sent: the operation may take hours.
        answer, came = self.ask(kind, how, bytes(piece), patience, limits)
        self._last = None
        if len(came) > self._room:
            self._exactly(self._room, came)
        self._came = came if answer.get("done") is True else b""
        return answer

    def send(self, name: str, data: memoryview) -> int:
        """Send a vector to the site, piece by piece; returns its mark, a transfer number.

        Marks increase, so a delayed piece cannot end up in a later vector. The last piece goes with
        the next operation (`finish`) if it fits.
        """
        mark = next(_marks)
        self._send_last()
        for start, stop in self._sizers.down.pieces(len(data)):
            header = {"name": name, "mark": mark, "start": start, "total": len(data)}
            if stop == len(data) and self._sizers.down.fits(stop - start):
                self._last = header, data[start:stop]
                break
            self._send(header, data[start:stop])
        return mark

    def _send_last(self) -> None:
        """Send the piece that was to go with the next question by itself, if there is one."""
        if self._last is not None:
            (where, piece), self._last = self._last, None
            self._send(where, piece)

    def _send(self, header: Mapping[str, Any], piece: memoryview) -> None:
        """Send a piece by itself."""
        with self._reserve(len(piece)):
            self.ask("piece", header, bytes(piece), PIECE_TIMEOUT)

    def fetch(self, ticket: int, total: int) -> Iterator[bytes]:
        """The pieces of a vector of `total` bytes, with what came with the answer; SiteError unless
        it is exactly that."""
        came, self._came = self._came, b""
        if (due := min(self._room, total)) or came:
            yield self._exactly(due, came)
        if due and due == total:
            return
        for start, stop in self._sizers.up.pieces(total, due):
            header = {"ticket": ticket, "start": start, "stop": stop}
            with self._reserve(stop - start):
                _, piece = self.ask("fetch", header, b"", PIECE_TIMEOUT)
            yield self._exactly(stop - start, piece)

    def _exactly(self, due: int, piece: bytes) -> bytes:
        """A piece of `due` bytes; SiteError if it has another length."""
        if len(piece) == due:
            return piece
        raise SiteError(
            f"{self._sender} sent {len(piece):,} bytes instead of {due:,}",
            "its reply was truncated, or it trains another model: compare the fingerprints",
        )

    def _answer(
        self, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        """The link's answer, without waiting for a site that has left or beyond the deadline.

        A waiting link cannot be interrupted, and may wait longer than `timeout` while an answer
        trickles in. So it waits in its own thread, which is abandoned in these cases.
        """
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def ask() -> None:
            try:
                found.put(self._link.ask(self.site, kind, header, body, timeout))
            except BaseException as error:  # raised again in the waiting thread
                found.put(error)

        threading.Thread(target=ask, daemon=True, name=f"ask-{self.site}").start()
        while True:
            try:
                answer = found.get(timeout=CHECK_INTERVAL)
            except queue.Empty:
                if self._gone(self.site):
                    raise Silent(f"site '{self.site}' has left") from None
                if time.monotonic() >= self._deadline:
                    raise self._late() from None
                continue
            understood = isinstance(answer, ConnectionError | JobEndedError)
            if isinstance(answer, Exception) and not understood:
                raise _unreadable(self.site, answer)
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _reserve(self, size: int) -> Iterator[None]:
        """Reserve a piece of `size` bytes in the budget of all conversations."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._budget.take(size, self._deadline - time.monotonic()))
            except TimeoutError:
                raise SiteError(
                    f"{self._sender} was not served within rounds.deadline: transfers of other "
                    "sites took all the time",
                    "check the network connections of the other rejected sites, or raise "
                    "rounds.deadline",
                ) from None
            yield

    def _late(self) -> SiteError:
        return SiteError(
            f"{self._sender} did not answer within rounds.deadline",
            "raise rounds.deadline, or check the site's machine and its network connection",
        )

    @property
    def _sender(self) -> str:
        return f"site '{self.site}'"

    def _checked(
        self, text: Any, data: Any, limits: messages.HeaderLimits
    ) -> tuple[dict[str, Any], bytes]:
        fields = messages.read_header(text, self._sender, limits)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise SiteError(
                f"{self._sender} sent something other than bytes",
                "run the same FedSight version there as at the coordinator",
            )
        error, cure = fields.get("error"), fields.get("cure")
        if error is not None:
            said = error if isinstance(error, str) else "it sent an error that is not text"
            advice = cure if isinstance(cure, str) else ""
            cause = f"{self._sender}: {printable(said, MAX_MESSAGE)}"
            if fields.get("final") is True:
                advice = printable(advice, MAX_MESSAGE)
                raise RefusedError(cause, advice, fields.get("evidence"))
            if fields.get("held") is True:
                raise HeldError(cause, printable(advice, MAX_MESSAGE))
            raise SiteError(cause, printable(advice, MAX_MESSAGE))
        return fields, bytes(data)


def _unreadable(site: str, error: BaseException) -> SiteError:
    """The failure of a site whose answer made this process fail."""
    log.error("the answer of site %r cannot be read", site, exc_info=error)
    return SiteError(
        f"site '{site}' sent an answer that cannot be read ({type(error).__name__})",
        "look at the coordinator's log: the site may be malicious, or this is a bug in FedSight",
    )


def converse(talks: Sequence[Talk], one: Callable[[Talk], None]) -> dict[str, SiteError | Silent]:
    """Hold all conversations at once; returns the errors of those that failed, by site.

    Only what is this machine's own fault is raised: a FedSightError of another kind, or an OSError
    such as that of a full disk.
    """
    failed: dict[str, SiteError | Silent] = {}

    def run(talk: Talk) -> None:
        try:
            one(talk)
        except (SiteError, Silent) as error:
            failed[talk.site] = error
        except (FedSightError, OSError):
            raise
        except Exception as error:  # MemoryError among them
            failed[talk.site] = _unreadable(talk.site, error)

    if len(talks) == 1:
        run(talks[0])
    elif talks:
        with ThreadPoolExecutor(len(talks), thread_name_prefix="talk") as pool:
            list(pool.map(run, talks))
    return failed


def reason(error: SiteError | Silent) -> str:
    """Why a conversation failed, as one sentence."""
    return error.cause if isinstance(error, SiteError) else str(error)
