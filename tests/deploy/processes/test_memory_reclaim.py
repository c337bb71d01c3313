"""Memory of handled messages is reclaimed; objects that stay are not scanned again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fedsight.deploy.processes import memory_reclaim


class Message:
    """A reference cycle, as FLARE leaves each message."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def no_automatic_collection() -> Iterator[None]:
    """Meanwhile Python does not collect garbage by itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "size", [1 << 10, 3 << 20, memory_reclaim.COLLECT_EVERY, 5 * memory_reclaim.COLLECT_EVERY]
)
def test_messages_are_collected_after_so_many_bytes(size: int) -> None:
    reclaimer = memory_reclaim.MemoryReclaimer()
    before, due = weakref.ref(Message()), -(-memory_reclaim.COLLECT_EVERY // size)
    for _ in range(due - 1):
        reclaimer.handled(size)
        assert before() is not None
    reclaimer.handled(size)
    assert before() is None
    again = weakref.ref(Message())
    for _ in range(due):
        reclaimer.handled(size)
    assert again() is None


def test_frozen_objects_are_not_scanned_again() -> None:
    old = weakref.ref(Message())
    kept = Message()
    memory_reclaim.freeze_live_objects()
    assert old() is None  # garbage is collected first
    frozen = gc.get_freeze_count()
    assert frozen > 1000  # everything that is imported
    there = weakref.ref(kept)
    del kept
    fresh = weakref.ref(Message())
    memory_reclaim.MemoryReclaimer().handled(memory_reclaim.TRIM_EVERY)
    assert fresh() is None
    assert there() is not None
    assert gc.get_freeze_count() <= frozen  # some may have been freed since
