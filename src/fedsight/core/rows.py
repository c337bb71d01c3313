"""Rows of numbers that the processes of one machine share: in memory, and then in a file."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsight.core.shared_memory import Shared

log = logging.getLogger(__name__)

# What the first places of the index hold; those of the rows follow.
_IN_MEMORY, _IN_FILE, _TOLD, _FIRST = range(4)
_CLOSED = 1 << 62  # more rows than any file holds: a file that cannot be written any more
FULL = (
    "the cache of frozen layers is full at %.1f MiB: what does not fit is computed each time "
    "(speed.cache, speed.cache_disk)"
)
FAILED = "the cache of frozen layers cannot use a file in %s: %s (speed.cache_folder)"


class Rows:
    """`count` rows of `width` float32 values, none of which is there at first.

    The first ones that are put go to shared memory, up to `memory` bytes, the next ones to a file
    of up to `disk` bytes in `folder`, and the others nowhere. The file has no name, and can be read
    by nobody else: it is gone with the last process that has it, however that ends. Picklable
    while a process is being started. Raises EngineError when the system has no memory for it.
    """

    _file = -1
    _close = staticmethod(os.close)  # the module may be unloaded when Python exits

    def __init__(
        self, count: int, width: int, memory: int, disk: int = 0, folder: Path | None = None
    ) -> None:
        self._bytes = 4 * width
        self._index = Shared((_FIRST + count,), torch.int64)
        self._memory = Shared((min(count, memory // self._bytes), width), torch.float32)
        self._limit = 0 if folder is None else min(count, disk // self._bytes)
        self._folder = folder
        self._thread = threading.Lock()
        if self._limit and len(self._memory.tensor) < count:
            try:
                with tempfile.TemporaryFile(dir=folder) as file:  # readable by this user alone
                    self._file = os.dup(file.fileno())
            except OSError as error:
                self._limit = 0
                log.warning(FAILED, folder, error.strerror or error)

    def __len__(self) -> int:
        return len(self._index.tensor) - _FIRST

    @property
    def bytes(self) -> tuple[int, int]:
        """How many bytes are used, in memory and in the file."""
        used = self._index.tensor
        rows = int(used[_IN_MEMORY]), int(used[_IN_FILE]) % _CLOSED
        return rows[0] * self._bytes, rows[1] * self._bytes

    def has(self, numbers: Tensor) -> Tensor:
        """Which of the rows `numbers` [b] are there: bool [b]."""
        with self._locked():
            return self._index.tensor[_FIRST + numbers] != 0

    def get(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The rows `numbers` [b] as float32 [b, width], and which of them are there: bool [b]."""
        with self._locked():
            places = self._index.tensor[_FIRST + numbers]
        rows = torch.zeros(len(numbers), self._memory.tensor.shape[1])
        inside, there = places > 0, places != 0
        rows[inside] = self._memory.tensor[places[inside] - 1]
        for at in (places < 0).nonzero().flatten().tolist():
            there[at] = self._read(rows[at], -int(places[at]) - 1)
        return rows, there

    def put(self, numbers: Tensor, rows: Tensor) -> None:
        """Keep `rows` [b, width] as the rows `numbers` [b], as far as there is room."""
        with self._locked():
            index = self._index.tensor
            for number, row in zip(numbers.tolist(), rows, strict=True):
                if index[_FIRST + number] == 0:
                    index[_FIRST + number] = self._kept(row)

    def _kept(self, row: Tensor) -> int:
        """Write a row; its place counted from 1, negative in the file, or 0: there is no room."""
        index = self._index.tensor
        inside, outside = int(index[_IN_MEMORY]), int(index[_IN_FILE])
        if inside < len(self._memory.tensor):
            self._memory.tensor[inside] = row
            index[_IN_MEMORY] += 1
            return inside + 1
        if outside < self._limit and self._write(row, outside):
            index[_IN_FILE] += 1
            return -outside - 1
        if not index[_TOLD]:
            index[_TOLD] = 1
            log.warning(FULL, sum(self.bytes) / 2**20)
        return 0

    def _write(self, row: Tensor, place: int) -> bool:
        data = row.contiguous().numpy().data.cast("B")
        try:
            written = os.pwrite(self._file, data, place * self._bytes)
            if written == self._bytes:
                return True
            why = os.strerror(28)  # no space left on device
        except OSError as error:
            why = error.strerror or str(error)
        self._index.tensor[_IN_FILE] += _CLOSED
        log.warning(FAILED, self._folder, why)
        return False

    def _read(self, row: Tensor, place: int) -> bool:
        """Fill `row` from the file; whether that worked."""
        view = row.numpy().data.cast("B")
        try:
            return os.preadv(self._file, [view], place * self._bytes) == self._bytes
        except OSError:
            return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and thread at a time; a process that dies lets go."""
        with self._thread:
            fcntl.lockf(self._index.fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._index.fd, fcntl.LOCK_UN)

    def __getstate__(self) -> dict[str, Any]:
        file = None if self._file < 0 else reduction.DupFd(self._file)
        return {**self.__dict__, "_file": file, "_thread": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread = threading.Lock()
        self._file = -1 if state["_file"] is None else state["_file"].detach()

    def __del__(self) -> None:
        if self._file >= 0:
            self._close(self._file)
