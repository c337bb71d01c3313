"""Files written whole or not at all, and files that grow line by line."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError, StoreError


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path`: after a crash there is the old file or the new one, never a part.

    The file gets the permissions `mode`, less the umask. Raises StoreError when the disk is full
    or the place cannot be written; the old file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(partial, flags, mode), "wb") as file:
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
    """Add a line of JSON, on the disk when this returns; OSError when it cannot be written.

    What a crash has left of a last line stays a line of its own.
    """
    with path.open("ab+") as file:
        torn = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        file.write(torn + json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that may not be there; a torn last one, left by a crash, is not one."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; what crashes have left of other lines is not one."""
    found = []
    for line in whole_lines(path):
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


def refuse_readable(path: Path, what: str) -> None:
    """Raise DeployError if others than its owner may read or write the file `path`."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DeployError(
            f"{what} may be read or changed by others: {path.name} has the mode {mode:04o}",
            f"chmod 600 {path.name}; if others have been on this machine, think of it as known",
        )


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
