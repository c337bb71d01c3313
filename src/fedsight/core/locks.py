"""File locks, so that only one process at a time works in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from fedsight.core.errors import FedSightError

RETRY_INTERVAL = 0.02  # seconds
GLANCE = 0.5  # seconds: longer than `held` takes to look, which may be just then


def hold(path: Path, patience: float, refusal: FedSightError) -> IO[bytes]:
    """Lock the file `path`; the lock is held until the returned file is closed.

    Waits up to `patience` seconds for the current holder, which may be ending; then raises
    `refusal`. The file's content is left alone, and a link is not followed (OSError): in a folder
    from somebody else, it could lead to any file of the user.

    A holder may remove the file. Who opened it before then locks a file that nobody else sees, so
    that lock does not count.
    """
    until = time.monotonic() + patience
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            if time.monotonic() >= until:
                raise refusal from None
            time.sleep(RETRY_INTERVAL)
        else:
            if _is_at(path, file):
                return file
            file.close()


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def held(path: Path) -> bool:
    """Whether a process holds the lock `path` now."""
    try:
        # Without waiting for whoever writes, should it be a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
