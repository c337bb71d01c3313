"""What coordinator and site say to each other: a small JSON header, and raw vectors.

Both sides know every length beforehand, from the program. So a message has nothing in it that
could make its reader allocate more than planned: vectors travel as bare little-endian bytes, cut
into pieces, and everything in a header is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.types import Metrics, PartSpec, PartSpecs, Sum

PIECE = 4 << 20  # bytes sent at once, at most: what is lost when a connection is cut
IN_FLIGHT = 12 << 20  # bytes: many small pieces over slow lines, or a few large ones
OVERDUE = 10.0  # seconds after which a piece does not count among those on their way any more
FIRST, LEAST = 256 << 10, 64 << 10  # bytes: the first piece over a line, and the smallest
QUICK, LONG = 0.3, 2.0  # seconds: the next piece is larger, or smaller
LONGEST = 16 << 20  # characters of a header: a confusion matrix of a thousand classes fits
MOST = 1 << 40  # the largest count or weight that anybody may name
_SAME_VERSION = "let it run the same FedSight version as the coordinator"


def pack(vectors: Iterable[Tensor]) -> memoryview:
    """float32 or uint8 vectors, one after the other, as little-endian bytes."""
    flat = [_as_bytes(vector) for vector in vectors]
    whole = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.uint8), *flat])
    return whole.data.cast("B")


def _as_bytes(vector: Tensor) -> npt.NDArray[np.uint8]:
    values = vector.reshape(-1).contiguous().numpy()
    return values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def unpack(data: bytearray, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The float32 vectors of the given lengths that `data` holds; ValueError if it holds others."""
    return unpack_parts(data, {name: PartSpec((size,)) for name, size in sizes.items()})


def unpack_parts(data: bytearray, specs: PartSpecs) -> dict[str, Tensor]:
    """The parts of a payload, as they were encoded; ValueError if `data` holds anything else."""
    expected = sum(spec.bytes for spec in specs.values())
    if len(data) != expected:
        raise ValueError(f"{len(data):,} bytes, not {expected:,}")
    found, start = {}, 0
    for name, spec in specs.items():
        length, dtype = spec.encoded
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        values = np.frombuffer(data, kind.newbyteorder("<"), length, start)
        found[name] = torch.from_numpy(values.astype(kind, copy=False))
        start += spec.bytes
    return found


class Budget:
    """How many bytes may be on their way at once, over all lines together.

    A piece that is overdue holds nobody up, or a few sites that hang could stop all others. What
    then is on its way beyond IN_FLIGHT is one piece a site at most, and those shrink (Stride).
    """

    def __init__(self) -> None:
        self._held: dict[object, tuple[float, int]] = {}  # since when, and bytes; oldest first
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int, patience: float = math.inf) -> Iterator[None]:
        """Wait until `size` bytes may be on their way, and count them while they are.

        Raises TimeoutError when they may not within `patience` seconds.
        """
        size, share = min(size, IN_FLIGHT), object()
        end = time.monotonic() + patience
        with self._changed:
            while True:
                now = time.monotonic()
                due = [
                    (since, held) for since, held in self._held.values() if now < since + OVERDUE
                ]
                if sum(held for _, held in due) + size <= IN_FLIGHT:
                    break
                if now >= end:
                    raise TimeoutError
                self._changed.wait(min(end, due[0][0] + OVERDUE) - now)
            self._held[share] = now, size
        try:
            yield
        finally:
            with self._changed:
                del self._held[share]
                self._changed.notify_all()


class Stride:
    """How large the pieces are that a line carries in about a second; found out as they go."""

    def __init__(self) -> None:
        self.size = min(FIRST, PIECE)  # bytes

    def pieces(self, total: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of each piece of `total` bytes; one empty piece of nothing."""
        start, stop = 0, -1
        while stop < total:
            began, stop = time.monotonic(), min(start + self.size, total)
            yield start, stop
            self._learn(time.monotonic() - began)
            start = stop

    def _learn(self, seconds: float) -> None:
        if seconds < QUICK:
            self.size = min(2 * self.size, PIECE)
        elif seconds > LONG:
            self.size = max(self.size // 2, min(LEAST, PIECE))


def read_header(text: Any, sender: str) -> dict[str, Any]:
    """The fields of a header; SiteError names the sender of anything else."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise SiteError(f"{sender} sent a message that is none", _SAME_VERSION)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise SiteError(f"{sender} sent a message that is cut off or garbled", _SAME_VERSION)
    return fields


def whole_number(fields: Mapping[str, Any], key: str, sender: str) -> int:
    """A count in a header, 0 to MOST; SiteError names the sender of anything else."""
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= MOST:
        raise SiteError(
            f"{sender} sent {key} = {repr(value)[:80]}, which is no plausible count", _SAME_VERSION
        )
    return value


def metrics_table(metrics: Metrics) -> dict[str, Any]:
    """Sums as plain values; every float keeps all its bits."""
    return {name: [np.asarray(s.total).tolist(), s.count] for name, s in metrics.items()}


def read_metrics(table: Any, sender: str) -> dict[str, Sum]:
    """Sums from plain values; SiteError names the sender of anything that is not finite sums."""
    try:
        sums = {}
        for name, (total, count) in table.items():
            values = np.asarray(total)  # texts, truth values and huge integers are no numbers
            plausible = type(count) is int and 0 <= count <= MOST and values.dtype.kind in "iuf"
            if not plausible or not np.isfinite(values).all():
                raise ValueError(name)
            sums[name] = Sum(values.astype(np.float64), count)
    except (AttributeError, TypeError, ValueError, RecursionError):
        cause = f"{sender} sent figures that are not finite sums over a count"
        raise SiteError(
            cause, "look at its log, and let it run the same FedSight version"
        ) from None
    return sums
