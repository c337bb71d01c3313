"""What messages leave in memory is swept up behind them, and what is there to stay is not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fedsight.deploy.processes import memory_reclaim


class Message:
    """As the engine leaves them: a part of itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def by_hand() -> Iterator[None]:
    """Python does not collect by itself meanwhile."""
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize(
    "size", [1 << 10, 3 << 20, memory_reclaim.COLLECT, 5 * memory_reclaim.COLLECT]
)
def test_messages_are_gone_when_so_many_bytes_have_passed(size: int) -> None:
    sweeper = memory_reclaim.Sweeper()
    before, due = weakref.ref(Message()), -(-memory_reclaim.COLLECT // size)
    for _ in range(due - 1):
        sweeper.passed(size)
        assert before() is not None
    sweeper.passed(size)
    assert before() is None
    again = weakref.ref(Message())
    for _ in range(due):
        sweeper.passed(size)
    assert again() is None


def test_what_has_settled_is_not_looked_at_again() -> None:
    old = weakref.ref(Message())
    kept = Message()
    memory_reclaim.settle()
    assert old() is None  # it was no longer needed then
    frozen = gc.get_freeze_count()
    assert frozen > 1000  # all that is imported
    there = weakref.ref(kept)
    del kept
    fresh = weakref.ref(Message())
    memory_reclaim.Sweeper().passed(memory_reclaim.TRIM)
    assert fresh() is None
    assert there() is not None
    assert gc.get_freeze_count() == frozen
