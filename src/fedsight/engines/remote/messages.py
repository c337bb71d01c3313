"""The messages between coordinator and site: a small JSON header and raw vectors.

Both sides know every length in advance from the program, so a message cannot make its reader
allocate more than planned: vectors are sent as raw little-endian bytes, in pieces; a header is
measured before it is parsed, and every field in it is compared with what is expected, shapes
included, before anything is made of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.text import printable
from fedsight.core.types import Metrics, PartSpec, PartSpecs, Sum

PIECE = 4 << 20  # maximum bytes of a piece, which are lost if the connection breaks
IN_FLIGHT = 12 << 20  # bytes: many small pieces over slow connections, or a few large ones
# Bytes of vectors that travel with questions and answers instead of in messages of their own, each
# way and over all connections: while the sites train nobody can tell whether they still do.
ALONG = 48 << 20
OVERDUE = 10.0  # seconds after which a piece no longer counts as in flight
FIRST_PIECE, MIN_PIECE = 256 << 10, 64 << 10  # bytes: a connection's first and smallest piece
FAST, SLOW = 0.3, 2.0  # seconds per piece: below it the next is larger, above it smaller
MAX_REASON = 300  # characters of a site's reason for withholding figures
MAX_COUNT = 1 << 40  # the largest count or weight that a message may hold
MAX_SUM = 1e100  # far above any sum of float32 values; any number of sites below it add up finitely
NUMBER_CHARACTERS = 32  # of a number and what separates it from the next, as JSON
_SAME_VERSION = "run the same FedSight version there as at the coordinator"


@dataclass(frozen=True)
class HeaderLimits:
    """How large a header may be, as is checked before it is parsed.

    Each value in JSON follows a comma, a colon or an opening bracket, so the number of these bounds
    the number of objects that parsing makes.
    """

    characters: int
    values: int

    def with_sums(self, shapes: Shapes, tables: int = 1) -> HeaderLimits:
        """These limits, with room for so many tables of sums of `shapes` (`metrics_table`)."""
        values = sum(
            4 + 2 * sum(math.prod(shape[:axis]) for axis in range(len(shape) + 1))
            for shape in shapes.values()
        )
        characters = NUMBER_CHARACTERS * values + 6 * sum(map(len, shapes))
        return HeaderLimits(self.characters + tables * characters, self.values + tables * values)

    def check(self, text: str, sender: str) -> None:
        """Raise SiteError, naming the sender, if `text` exceeds them."""
        if len(text) <= self.characters and sum(map(text.count, "[{,:")) <= self.values:
            return
        raise SiteError(
            f"{sender} sent a message with more in its header than it can need "
            f"({len(text):,} characters)",
            _SAME_VERSION,
        )


Shapes = Mapping[str, tuple[int, ...]]  # of sums, by name
# A declaration of 65,536 classes fits.
HEADER = HeaderLimits(2 << 20, 1 << 18)


def pack(vectors: Iterable[Tensor]) -> memoryview:
    """float32, int64 or uint8 vectors, concatenated as little-endian bytes."""
    flat = [_as_bytes(vector) for vector in vectors]
    whole = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.uint8), *flat])
    return whole.data.cast("B")


def _as_bytes(vector: Tensor) -> npt.NDArray[np.uint8]:
    values = vector.reshape(-1).contiguous().numpy()
    return values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def unpack(data: bytearray, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The float32 vectors in `data`; ValueError if their total length is not that of `sizes`."""
    return unpack_parts(data, {name: PartSpec((size,)) for name, size in sizes.items()})


def unpack_parts(data: bytearray, specs: PartSpecs) -> dict[str, Tensor]:
    """The encoded parts of a payload; ValueError if `data` has another length."""
    found, start, whole = {}, 0, memoryview(data)
    for name, spec in specs.items():
        _, dtype = spec.encoded
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        size = spec.size_at(whole, start)
        values = np.frombuffer(data, kind.newbyteorder("<"), size // kind.itemsize, start)
        if not values.flags.aligned:  # integers after an odd number of float32 values
            values = values.copy()
        found[name] = torch.from_numpy(values.astype(kind, copy=False))
        start += size
    if start != len(data):
        raise ValueError(f"{len(data):,} bytes, not {start:,}")
    return found


class Budget:
    """Limits the bytes in flight over all connections.

    An overdue piece no longer counts; otherwise a few hanging sites could block all others. The
    excess over IN_FLIGHT is then at most one piece per site, and those get smaller (PieceSizer).
    """

    def __init__(self) -> None:
        self._held: dict[object, tuple[float, int]] = {}  # (start time, bytes), oldest first
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int, patience: float = math.inf) -> Iterator[None]:
        """Wait until `size` more bytes fit, and count them within the context.

        Raises TimeoutError if they do not fit within `patience` seconds.
        """
        size, share = min(size, IN_FLIGHT), object()
        end = time.monotonic() + patience
        with self._changed:
            while True:
                now = time.monotonic()
                counted = [
                    (since, held) for since, held in self._held.values() if now < since + OVERDUE
                ]
                if sum(held for _, held in counted) + size <= IN_FLIGHT:
                    break
                if now >= end:
                    raise TimeoutError
                self._changed.wait(min(end, counted[0][0] + OVERDUE) - now)
            self._held[share] = now, size
        try:
            yield
        finally:
            with self._changed:
                del self._held[share]
                self._changed.notify_all()


class PieceSizer:
    """Adapts the size of the pieces so that a connection carries one in about a second."""

    def __init__(self, along: int = 0) -> None:
        """`along`: the most bytes of a vector that may travel with a question or its answer."""
        self.size = min(FIRST_PIECE, PIECE)  # bytes
        self.fast = False  # whether the last piece that travelled by itself was carried in no time
        self._along = along

    def fits(self, size: int) -> bool:
        """Whether so many bytes travel with a question or its answer, instead of by themselves."""
        return self.fast and 0 < size <= min(self._along, self.size)

    def pieces(self, total: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of each piece of `total` bytes from `start` on; one empty piece if
        there are none."""
        stop = -1
        while stop < total:
            began, stop = time.monotonic(), min(start + self.size, total)
            yield start, stop
            self._adapt(time.monotonic() - began)
            start = stop

    def shrink(self) -> None:
        """Make the next piece smaller: the connection has broken, or become slow."""
        self.size, self.fast = max(self.size // 2, min(MIN_PIECE, PIECE)), False

    def _adapt(self, seconds: float) -> None:
        self.fast = seconds < FAST
        if self.fast:
            self.size = min(2 * self.size, PIECE)
        elif seconds > SLOW:
            self.shrink()


class Sizers:
    """The sizes of the pieces to a site and from it: its connection may be slower one way."""

    def __init__(self, along: int = 0) -> None:
        """As that of a `PieceSizer`."""
        self.down, self.up = PieceSizer(along), PieceSizer(along)

    def shrink(self) -> None:
        """As that of a `PieceSizer`, both ways."""
        self.down.shrink()
        self.up.shrink()


def read_header(text: Any, sender: str, limits: HeaderLimits = HEADER) -> dict[str, Any]:
    """The fields of a header; SiteError, naming the sender, if it is not one."""
    if not isinstance(text, str):
        raise SiteError(f"{sender} sent a message without a valid header", _SAME_VERSION)
    limits.check(text, sender)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise SiteError(f"{sender} sent a message that is truncated or corrupt", _SAME_VERSION)
    return fields


def fields_in(fields: Mapping[str, Any], key: str, sender: str) -> dict[str, Any]:
    """The fields within a field of a header; SiteError, naming the sender, if it has none."""
    value = fields.get(key)
    if not isinstance(value, dict):
        cause = f"{sender} sent {key} = {_shown(value)}, which is not a table of fields"
        raise SiteError(cause, _SAME_VERSION)
    return value


def whole_number(fields: Mapping[str, Any], key: str, sender: str) -> int:
    """A count in a header, 0 to MAX_COUNT; SiteError, naming the sender, for anything else."""
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise SiteError(
            f"{sender} sent {key} = {_shown(value)}, which is not a valid count", _SAME_VERSION
        )
    return value


def is_sendable(sum: Sum) -> bool:
    """Whether the reader of a sum accepts its numbers."""
    return bool((np.abs(sum.total) <= MAX_SUM).all())


def read_reason(value: Any) -> str:
    """A site's reason for withholding figures, in printable characters of limited number."""
    return printable(value, MAX_REASON)


def _shown(value: Any) -> str:
    """A field of a header in a few words; a container's content is not shown."""
    return printable(repr(value), 80) if isinstance(value, str | int | float | None) else "..."


def metrics_table(metrics: Metrics) -> dict[str, Any]:
    """Sums as plain values; floats keep their full precision."""
    return {name: [np.asarray(s.total).tolist(), s.count] for name, s in metrics.items()}


def read_metrics(table: Any, shapes: Shapes, sender: str) -> dict[str, Sum]:
    """Sums of the given names and shapes from plain values.

    Raises SiteError, naming the sender, for other names or shapes, or values that are not finite.
    Nothing is allocated before the shape is known to be the expected one.
    """
    try:
        if not isinstance(table, dict) or table.keys() != shapes.keys():
            raise ValueError("other names")
        return {name: _read_sum(table[name], shape) for name, shape in shapes.items()}
    except (TypeError, ValueError, OverflowError):
        cause = f"{sender} sent figures that are not the finite sums of this task"
        raise SiteError(cause, "check its log, and run the same FedSight version there") from None


def _read_sum(pair: Any, shape: tuple[int, ...]) -> Sum:
    """One sum; ValueError if it has another shape or is not finite."""
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError("not a pair")
    values, count = [pair[0]], pair[1]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in values):
            raise ValueError("another shape")
        values = [value for row in values for value in row]
    if not {type(value) for value in values} <= {int, float}:  # bool is a type of its own
        raise ValueError("not numbers")
    if type(count) is not int or not 0 <= count <= MAX_COUNT:
        raise ValueError("not a count")
    if not all(-MAX_SUM <= value <= MAX_SUM for value in values):  # NaN fails this too
        raise ValueError("not finite")
    return Sum(np.array(values, np.float64).reshape(shape), count)
