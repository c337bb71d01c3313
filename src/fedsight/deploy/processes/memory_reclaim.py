"""Memory of the processes through which vectors pass, given back soon.

The deployment engine leaves each message in a cycle of references, which Python breaks when enough
objects have been made, and a vector is a few objects of many megabytes. What is freed then stays
with the allocator, in pieces. So both are told to look whenever so many bytes have passed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading

COLLECT = 8 << 20  # bytes: less than may be on their way at once (`engines/remote/messages.py`)
TRIM = 32 << 20  # bytes: pages that are given back must be had again, so less often
_M_ARENA_MAX = -8  # `mallopt(3)`


def one_for_all_threads() -> None:
    """From now on all threads allocate from one heap; call it before there are any.

    Else each of the engine's threads frees large pieces into a heap of its own, which keeps them.
    MALLOC_ARENA_MAX says the same, but to a program that begins.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def settle() -> None:
    """What is there now is there to stay: later collections do not look at it.

    They would take a tenth of a second each with all that is imported, and so take none.
    """
    gc.collect()
    gc.freeze()


class Sweeper:
    """Counts the bytes that pass, and sweeps up behind them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed = 0

    def passed(self, size: int) -> None:
        """A message of `size` bytes was dealt with."""
        with self._lock:
            before = self._passed
            self._passed += size
            after = self._passed
        if before // COLLECT < after // COLLECT:
            gc.collect()
        if before // TRIM < after // TRIM:
            with contextlib.suppress(OSError, AttributeError):  # another C library
                ctypes.CDLL(None).malloc_trim(0)
