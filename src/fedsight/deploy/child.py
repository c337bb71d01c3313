"""Processes that end with their parent: this one from now on, or a module that is run as one."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

LOOK = 0.5  # seconds


def end_with_parent() -> None:
    """From now on this process dies soon after its parent, however that ends.

    A FLARE process that nobody keeps would go on under an identity that is started anew.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _end_with_parent_on_one_thread() -> None:
    """The same by a timer, for a process that may fork: a copy lacks all threads but one."""
    parent = os.getppid()

    def look(number: int, frame: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)  # copies do not inherit it


if __name__ == "__main__":
    _end_with_parent_on_one_thread()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
