"""Run folders: a free name for a new one, and one process at a time in each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fedsight.coordinator.asked import answered
from fedsight.core import locks
from fedsight.core.errors import StoreError
from fedsight.core.files import make_folder

LOCK = ".lock"  # held by the process that trains
CARRIED = ".carried"  # held by the process that carries a run of a federation from job to job


def free_folder(root: Path, name: str) -> Path:
    """A new, empty folder `root/name`, or `root/name-2` and so on if that is taken.

    It is made here, so that of several processes that ask at once each gets its own.
    """
    make_folder(root)
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StoreError(
                f"cannot create the folder {folder}: {error.strerror or error}", "choose --out"
            ) from error
        else:
            return folder


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; if nothing was written in it, it is removed afterwards.

    What was asked of an earlier process is forgotten at once: from now on a run counts as running,
    and whatever is asked is for this process, although it may be long before it goes on.

    Raises StoreError if another process holds it.
    """
    make_folder(folder)
    lock = folder / LOCK
    refusal = StoreError(
        f"another process is at work in {folder}",
        "wait until it ends, or choose another --out",
    )
    try:
        file = locks.hold(lock, locks.GLANCE, refusal)
    except OSError as error:
        raise StoreError(
            f"cannot write in {folder}: {error.strerror or error}", "choose another --out"
        ) from error
    with file:
        answered(folder)
        try:
            yield
        finally:
            # While it is still held: whoever opens the file from now on opens a new one.
            with contextlib.suppress(OSError):
                lock.unlink()
                folder.rmdir()
