"""Processes that end with their parent: this one from now on, or a module that is run as one."""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import sys

LOOK = 0.5  # seconds


def end_with_parent() -> None:
    """From now on this process dies soon after its parent, however that ends.

    A FLARE process that nobody keeps would go on under an identity that is started anew. A timer
    looks, not a thread: a process that forks (`prefork.py`) must have one thread only.
    """
    parent = os.getppid()

    def look(number: int, frame: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)  # a copy does not inherit it
    # The interpreter gives handlers up at its end: the next signal would kill it there.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
