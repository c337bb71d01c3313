"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedsight.core.errors import StoreError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: after a crash there is the old file or the new one, never a part.

    Raises StoreError when the disk is full or the place cannot be written; the old file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            "free some space or choose another folder; the last whole file is untouched, so "
            "`fedsight resume` goes on from there",
        ) from error


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it; StoreError when that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {path}: {error.strerror or error}",
            "free some space or choose another place",
        ) from error
