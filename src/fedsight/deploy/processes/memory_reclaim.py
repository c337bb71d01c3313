"""Returns memory to the system soon after large messages have been handled.

FLARE leaves each message in a reference cycle. Python collects cycles after a number of objects,
not bytes, and a model vector is a few objects of many megabytes. Freed memory then stays with the
allocator in fragments. So the garbage collector and the allocator both run after so many bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading

# Bytes of messages after which garbage is collected. Less than the messages in flight at once
# (`engines/remote/messages.py`).
COLLECT_EVERY = 8 << 20
# Bytes of messages after which freed pages go back to the system. This is less often, because the
# process has to fault them in again.
TRIM_EVERY = 32 << 20
_M_ARENA_MAX = -8  # `mallopt(3)`


def use_one_arena() -> None:
    """Make all threads allocate from one arena; call it before any thread starts.

    Otherwise each of FLARE's threads frees large blocks into an arena of its own, which keeps them.
    The variable MALLOC_ARENA_MAX does the same, but only when a program starts.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def freeze_live_objects() -> None:
    """Exclude all objects that exist now from later garbage collections.

    Scanning everything that is imported takes a tenth of a second for each collection.
    """
    gc.collect()
    gc.freeze()


class MemoryReclaimer:
    """Counts the bytes of messages, and reclaims memory whenever enough have been handled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handled = 0

    def handled(self, size: int) -> None:
        """A message of `size` bytes was handled."""
        with self._lock:
            before = self._handled
            self._handled += size
            after = self._handled
        if before // COLLECT_EVERY < after // COLLECT_EVERY:
            gc.collect()
        if before // TRIM_EVERY < after // TRIM_EVERY:
            with contextlib.suppress(OSError, AttributeError):  # another C library
                ctypes.CDLL(None).malloc_trim(0)
