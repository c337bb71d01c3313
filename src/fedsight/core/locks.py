"""Locks on files: a folder is worked in by one process at a time."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

from fedsight.core.errors import FedSightError

LOOK = 0.2  # seconds


def hold(path: Path, patience: float, refusal: FedSightError) -> IO[bytes]:
    """The lock on the file `path`, held until it is closed.

    Waits up to `patience` seconds for whoever holds it (it may be ending); raises `refusal` then.
    """
    file = path.open("wb")
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() >= until:
                file.close()
                raise refusal from None
            time.sleep(LOOK)


def held(path: Path) -> bool:
    """Whether some process holds the lock `path` now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
