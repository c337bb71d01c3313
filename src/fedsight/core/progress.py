"""Long work says how far it is, to whoever listens: `images read`, 12 of 2,000."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]  # (phase, done, total)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def progress(phase: str, done: int, total: int) -> None:
    """Tell the listener of this context, if there is one, that `done` of `total` are done."""
    listener = _listener.get()
    if listener is not None:
        listener(phase, done, total)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Meanwhile, `listener` hears of the progress of work in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
