"""How many bytes of unfinished streams another machine may leave in a process here.

FLARE allocates what the first chunk of a stream announces, keeps chunks that come too early, and
forgets neither for minutes. Our own streams are a few pieces of a few megabytes at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)

# Bytes of one message, which FLARE also enforces (`NVFLARE_STREAMING_MAX_BLOB_SIZE`). Ours are a
# header and a piece or a binding, 32 MiB at most.
MAX_STREAM = 64 << 20
# Of a sender's unfinished streams. A connection that breaks leaves what was in flight, 12 MiB.
MAX_BYTES, MAX_STREAMS = 128 << 20, 512
FORGOTTEN_AFTER = 330.0  # seconds without a chunk; FLARE gives a stream up after 300


@dataclass
class _Stream:
    held: int  # bytes announced, or received if these are more
    received: int
    seen: float


class OpenStreams:
    """The unfinished streams of all senders, as seen in the chunks that pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, dict[tuple[str, str, int], _Stream]] = {}  # by sender

    def admit(self, message: Message, sender: str) -> bool:
        """Whether the sender may have this message in its streams too; others always pass."""
        get = message.get_header
        if get(MessageHeaderKey.CHANNEL) != STREAM_CHANNEL:
            return True
        stream = get(StreamHeaderKey.STREAM_ID)
        if type(stream) is not int:
            return False
        if get(MessageHeaderKey.TOPIC) != STREAM_DATA_TOPIC:
            return True  # about a stream of ours
        key = (get(MessageHeaderKey.ORIGIN), get(MessageHeaderKey.DESTINATION), stream)
        with self._lock:
            known = self._open.setdefault(sender, {})
            admitted = self._admit_chunk(message, known, key)
            if not known:
                del self._open[sender]
            return admitted

    def _admit_chunk(
        self,
        message: Message,
        known: dict[tuple[str, str, int], _Stream],
        key: tuple[str, str, int],
    ) -> bool:
        get, now = message.get_header, self._clock()
        announced = get(StreamHeaderKey.SIZE, 0)
        if type(announced) is not int or not 0 <= announced <= MAX_STREAM:
            return False
        for old in [one for one, found in known.items() if now - found.seen > FORGOTTEN_AFTER]:
            del known[old]
        before = known.get(key) or _Stream(0, 0, now)
        received = before.received + len(message.payload or b"")
        held = max(before.held, announced, received)
        last = get(StreamHeaderKey.DATA_TYPE) == StreamDataType.FINAL
        others = sum(one.held for other, one in known.items() if other != key)
        if others + held > MAX_BYTES or (key not in known and len(known) >= MAX_STREAMS):
            return False
        if last:
            known.pop(key, None)
        else:
            known[key] = _Stream(held, received, now)
        return True
