"""Runs a module as a process that ends with its parent."""

from __future__ import annotations

import os
import runpy
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


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
