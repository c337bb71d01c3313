"""How much another machine may leave in a process here by streams that it does not finish.

FLARE allocates what the first chunk of a stream announces, and keeps chunks that come too early. A
stream whose first chunk never comes it keeps as long as the process lives, and for each that was
answered reliably a thread, for as long as the sender says. Chunks come in any order, in several
threads, and some of them twice: what is kept FLARE alone knows. So it is counted where FLARE takes
a chunk, under the lock of the stream. Our own streams are a few pieces of a few megabytes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamHeaderKey,
)
from nvflare.fuel.f3.streaming.stream_types import StreamError

from fedsight.core.text import printable

# Bytes of one message, which FLARE also enforces (`NVFLARE_STREAMING_MAX_BLOB_SIZE`). Ours are a
# header and a piece or a binding, 32 MiB at most.
MAX_STREAM = 64 << 20
# Of a sender's unfinished streams. A connection that breaks leaves what was in flight, 12 MiB. Each
# stream that has begun keeps one of the 64 threads in which FLARE hands streams over.
MAX_BYTES, MAX_STREAMS = 128 << 20, 48
FORGOTTEN_AFTER = 330.0  # seconds without a chunk; FLARE gives those that have begun up after 300
# Of a sender's streams that have ended, and are known for a while: chunks may come again.
MAX_ENDED, MAX_ENDED_BYTES = 1024, 16 << 20
MAX_HEADERS = 1 << 20  # bytes of the headers of a chunk; ours have some thousands
_ENTRY = 64  # bytes that an entry of a header takes at least
log = logging.getLogger(__name__)


def is_sound(message: Message) -> bool:
    """Whether a message has the headers of a stream as FLARE writes them; others always have."""
    get = message.get_header
    if get(MessageHeaderKey.CHANNEL) != STREAM_CHANNEL:
        return True
    if type(get(StreamHeaderKey.STREAM_ID)) is not int:
        return False
    if weight_of(message.headers) > MAX_HEADERS:
        return False
    if get(MessageHeaderKey.TOPIC) != STREAM_DATA_TOPIC:
        return True  # about a stream of ours
    size, number = get(StreamHeaderKey.SIZE, 0), get(StreamHeaderKey.SEQUENCE)
    return type(size) is int and 0 <= size <= MAX_STREAM and type(number) is int and number >= 0


class Shares:
    """What each sender has in streams here: unfinished ones, and ended ones that are known."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, dict[BoundedTask, int]] = {}  # by sender: bytes of each
        # By sender: until when each is known, and the bytes of its headers.
        self._ended: dict[str, dict[BoundedTask, tuple[float, int]]] = {}
        self._refused: dict[str, int] = {}

    def has_room(self, sender: str, size: int, new: bool) -> bool:
        """Whether the sender may leave `size` more bytes here, in a `new` stream or a known one."""
        self._forget(sender)
        with self._lock:
            known = self._open.get(sender, {})
            if sum(known.values()) + size <= MAX_BYTES and not (new and len(known) >= MAX_STREAMS):
                return True
            count = self._refused[sender] = self._refused.get(sender, 0) + 1
        if not count & (count - 1):
            shown = printable(sender, 120)
            log.warning("dropped %d chunks of %s: too much is unfinished", count, shown)
        return False

    def take(self, task: BoundedTask, held: int) -> bool:
        """Count `held` bytes for a stream, unless its sender would have too much."""
        with self._lock:
            known = self._open.setdefault(task.sender, {})
            others = sum(known.values()) - known.get(task, 0)
            full = task not in known and len(known) >= MAX_STREAMS
            if full or others + held > MAX_BYTES:
                return False
            known[task] = held
            return True

    def release(self, task: BoundedTask) -> None:
        """A stream has ended: its bytes count no longer."""
        with self._lock:
            known = self._open.get(task.sender, {})
            known.pop(task, None)
            if not known:
                self._open.pop(task.sender, None)

    def retire(self, task: BoundedTask, seconds: float) -> None:
        """Keep a stream that has ended for a while, or until there are too many of its sender."""
        now, gone = self.clock(), []
        with self._lock:
            known = self._ended.setdefault(task.sender, {})
            known.setdefault(task, (now + seconds, task.weight))
            size = sum(weight for _, weight in known.values())
            while known:
                oldest = next(iter(known))
                until, weight = known[oldest]
                if now < until and len(known) <= MAX_ENDED and size <= MAX_ENDED_BYTES:
                    break
                gone.append(oldest)
                size -= weight
                del known[oldest]
            if not known:
                del self._ended[task.sender]
        for one in gone:
            one.remove()

    def _forget(self, sender: str) -> None:
        """Give up the streams of a sender of which no chunk has come for long."""
        now = self.clock()
        with self._lock:
            stalled = [
                one for one in self._open.get(sender, {}) if now - one.seen > FORGOTTEN_AFTER
            ]
        for one in stalled:  # not under the lock: a stream takes it under its own
            one.stop(StreamError("nothing has come for too long"), notify=False)


SHARES = Shares()  # of this process


class BoundedTask(RxTask):
    """A stream that FLARE receives, within the share of its sender."""

    def __init__(self, sid: int, origin: str, cell: Any, reliable: bool = False) -> None:
        super().__init__(sid, origin, cell, reliable)
        self.sender = _root(origin)
        self.seen = SHARES.clock()
        self.weight = 0  # of its headers
        self._ours = self.sender == _root(cell.my_info.fqcn)  # this machine's own
        self._taken = 0  # bytes of chunks

    @classmethod
    def find_or_create_task(cls, message: Message, cell: Any) -> BoundedTask | None:
        """The stream of a chunk; None, and the chunk is dropped, where its sender has too much."""
        origin = message.get_header(MessageHeaderKey.ORIGIN)
        sender, number = _root(origin), message.get_header(StreamHeaderKey.STREAM_ID)
        if sender != _root(cell.my_info.fqcn):
            with cls.map_lock:
                new = (origin, number) not in cls.rx_task_map
            size = len(message.payload or b"") + weight_of(message.headers)
            if new:
                size = max(size, message.get_header(StreamHeaderKey.SIZE, 0))
            if not SHARES.has_room(sender, size, new):
                return None
        found: BoundedTask | None = super().find_or_create_task(message, cell)
        return found

    def stop(self, error: Any = None, notify: bool = True) -> None:
        """End the stream, with an error or because all of it has come."""
        super().stop(error, notify)
        if not self._ours and (self.completed or self.failed):
            with self.lock:
                self.out_seq_chunks.clear()  # nobody reads them any more
                if self.failed:
                    self.chunks.clear()
            SHARES.release(self)

    def remove(self) -> None:
        """Know the stream no longer."""
        self._remove_task()

    def _handle_incoming_data(self, seq: int, message: Message) -> Any:
        """Called by FLARE, under the stream's lock, with a chunk that it may keep."""
        if self._ours:
            return super()._handle_incoming_data(seq, message)
        if self.completed or self.failed:  # by another thread, just now
            return False, None, StreamError("the stream has ended") if self.failed else None
        self.seen, weight = SHARES.clock(), weight_of(message.headers)
        self.weight = self.weight or weight
        if seq >= self.next_seq and seq not in self.out_seq_chunks:
            self._taken += len(message.payload or b"") + weight  # of the frame that both are in
        if not SHARES.take(self, max(self.size, self._taken) + self.weight):
            return False, None, StreamError("more than a sender may leave unfinished")
        return super()._handle_incoming_data(seq, message)

    def _schedule_remove_task(self, ttl: float | None = None) -> None:
        """Called by FLARE to know the stream for a while; its own way takes a thread."""
        if self._ours:
            super()._schedule_remove_task(ttl)
            return
        SHARES.retire(self, self.completed_task_ttl if ttl is None else ttl)


def weight_of(headers: object) -> int:
    """About how many bytes the headers of a message take, with all that is in them; of more than
    `MAX_HEADERS` the rest is not looked at."""
    total, inside = 0, [headers]
    while inside and total <= MAX_HEADERS:
        value = inside.pop()
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, Mapping | list | tuple):
            total += 2 * _ENTRY * len(value)
            if total <= MAX_HEADERS:
                inside += [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    return total


def _root(address: object) -> str:
    return str(address).partition(".")[0]
