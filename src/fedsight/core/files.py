"""Files written whole or not at all, and files that grow line by line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add a line of JSON, on the disk when this returns; OSError when it cannot be written."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that may not be there; a torn last one, left by a crash, is not one."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def is_taken(folder: Path) -> bool:
    """Whether something lies in `folder`, or in its place."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it; StoreError when that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {path}: {error.strerror or error}",
            "free some space or choose another place",
        ) from error
