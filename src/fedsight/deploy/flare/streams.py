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

from nvflare.fuel.f3.cellnet.defs import Encoding, MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming import byte_receiver
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler
from nvflare.fuel.f3.streaming.byte_receiver import ByteReceiver, RxTask
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
    if get(MessageHeaderKey.PAYLOAD_ENCODING) == Encoding.FOBS:
        return False  # a chunk is bytes; of values FLARE would keep all, as many as they are long
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
        # By sender: bytes of streams that have come whole, and wait for one of FLARE's threads.
        self._waiting: dict[str, dict[BoundedTask, int]] = {}
        self._refused: dict[str, int] = {}

    def has_room(self, sender: str, size: int, new: bool) -> bool:
        """Whether the sender may leave `size` more bytes here, in a `new` stream or a known one."""
        self._forget(sender)
        with self._lock:
            known = self._open.get(sender, {})
            if self._bytes(sender) + size <= MAX_BYTES and not (new and len(known) >= MAX_STREAMS):
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
            others = self._bytes(task.sender) - known.get(task, 0)
            full = task not in known and len(known) >= MAX_STREAMS
            if full or others + held > MAX_BYTES:
                return False
            known[task] = held
            return True

    def complete(self, task: BoundedTask, held: int) -> None:
        """A stream has come whole: its bytes count until they have been used."""
        with self._lock:
            self._remove(self._open, task)
            if not task.used:
                self._waiting.setdefault(task.sender, {})[task] = held

    def use(self, task: BoundedTask) -> None:
        """What came was used, or is not going to be: it waits for nobody."""
        with self._lock:
            task.used = True
            self._remove(self._waiting, task)

    def release(self, task: BoundedTask) -> None:
        """A stream has failed: its bytes count no longer."""
        with self._lock:
            self._remove(self._open, task)
            self._remove(self._waiting, task)

    def _bytes(self, sender: str) -> int:
        """How many bytes count as the sender's."""
        both = (self._open, self._waiting)
        return sum(sum(one.get(sender, {}).values()) for one in both)

    @staticmethod
    def _remove(kept: dict[str, dict[BoundedTask, int]], task: BoundedTask) -> None:
        known = kept.get(task.sender, {})
        known.pop(task, None)
        if not known:
            kept.pop(task.sender, None)

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
        self.used = False  # whether nobody waits for what comes
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
            size = size_of(message)
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
            if self.failed:
                SHARES.release(self)
            else:
                SHARES.complete(self, self._taken + self.weight)

    def remove(self) -> None:
        """Know the stream no longer."""
        self._remove_task()

    def _handle_incoming_data(self, seq: int, message: Message) -> Any:
        """Called by FLARE, under the stream's lock, with a chunk that it may keep."""
        if self._ours:
            return super()._handle_incoming_data(seq, message)
        if self.completed or self.failed:  # by another thread, just now
            return False, None, StreamError("the stream has ended") if self.failed else None
        self.seen = SHARES.clock()
        self.weight = self.weight or weight_of(message.headers)
        if seq >= self.next_seq and seq not in self.out_seq_chunks:
            self._taken += size_of(message)
        if not SHARES.take(self, max(self.size, self._taken) + self.weight):
            return False, None, StreamError("more than a sender may leave unfinished")
        return super()._handle_incoming_data(seq, message)

    def _schedule_remove_task(self, ttl: float | None = None) -> None:
        """Called by FLARE to know the stream for a while; its own way takes a thread."""
        if self._ours:
            super()._schedule_remove_task(ttl)
            return
        SHARES.retire(self, self.completed_task_ttl if ttl is None else ttl)


def called(task: Any, callback: Any) -> Any:
    """FLARE's `ByteReceiver._callback_wrapper`: calls who wants to know of a stream that begins.

    Some want all that it brings, and are called again (`called_with_whole`); nobody else waits.
    """
    try:
        return _called(task, callback)
    finally:
        if isinstance(task, BoundedTask) and not isinstance(_owner(callback), BlobHandler):
            SHARES.use(task)


def called_with_whole(self: Any, future: Any, stream: Any, args: Any, kwargs: Any) -> None:
    """FLARE's `BlobHandler._run_blob_cb`: calls who wants all that a stream brought, in one of 64
    threads, each of which waits for a stream."""
    try:
        _called_with_whole(self, future, stream, args, kwargs)
    finally:
        if isinstance(task := getattr(stream, "task", None), BoundedTask):
            SHARES.use(task)


def _owner(callback: Any) -> object:
    return getattr(callback.cb, "__self__", None)


# FLARE's own; AttributeError if this version has no such name.
_called, _called_with_whole = ByteReceiver._callback_wrapper, BlobHandler._run_blob_cb


def bound_streams() -> None:
    """Have the FLARE of this process receive streams so."""
    byte_receiver.RxTask = BoundedTask
    ByteReceiver._callback_wrapper = staticmethod(called)
    BlobHandler._run_blob_cb = called_with_whole


def size_of(message: Message) -> int:
    """How many bytes a chunk keeps in memory: its payload may be a part of the frame that it came
    in, all of which is kept with it, whatever its headers are once they have been read."""
    payload = message.payload
    whole: Any = payload.obj if isinstance(payload, memoryview) else payload
    return len(whole or b"") + weight_of(message.headers)


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
