"""What the user asks of a run that is going on, from another process: to stop, or to pause.

The request is a file in the run's folder, so it needs no signal, no port and no process ID, and it
reaches a run wherever its folder can be written.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, get_args

from fedsight.core.files import content, write_atomically

ASKED = ".asked"
Request = Literal["pause", "stop"]


def ask(folder: Path, request: Request) -> None:
    """Leave a request for the run in `folder`; a later one replaces it. StoreError if that fails.

    `pause`: end after the round in progress. `stop`: end now. Both leave a run that resumes.
    """
    write_atomically(folder / ASKED, request.encode())


def asked(folder: Path) -> Request | None:
    """The request that waits in `folder`; None if there is none, or it is not one."""
    try:
        text = content(folder / ASKED).decode().strip()
    except (OSError, ValueError):
        return None
    return next((request for request in get_args(Request) if request == text), None)


def answered(folder: Path) -> None:
    """Take the request away: it is met, or the run that it was for is over."""
    with contextlib.suppress(OSError):
        (folder / ASKED).unlink(missing_ok=True)
