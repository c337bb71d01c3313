"""Atomic writes, files that grow line by line, names of files, and links that are not followed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fedsight.core.errors import DeployError, StoreError

# A name may have 255 bytes; an ending, and what `write_atomically` puts around it, take the rest.
MAX_NAME = 220


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` atomically: a crash leaves either the old file or the new one.

    The file gets the permissions `mode`, less the umask. Raises StoreError when the disk is full
    or the folder is not writable; the old file is then kept.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
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
            "free some space or choose another folder; the previous file is intact, so "
            "`fedsight resume` continues from there",
        ) from error


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append a line of JSON and flush it to the disk; OSError when it cannot be written.

    An incomplete last line, left by a crash, is ended first, so it remains a separate line. A link
    is not followed: in a folder from somebody else, it could lead to any file of the user.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "ab+") as file:
        torn = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        file.write(torn + json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def opened(path: Path, links: bool = True) -> BinaryIO:
    """A file, open for reading; with `links`, also one that `path` is a link to. OSError for what
    is none, too: in a folder from somebody else, a pipe would be waited for, and a link to a device
    read, without end; and for a name that no file can have."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    except ValueError as error:  # with a zero, or half of a surrogate pair
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return file


def content(path: Path, links: bool = True) -> bytes:
    """The bytes of a file; OSError as `opened` raises it."""
    with opened(path, links) as file:
        return file.read()


def whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file, which may not exist; an incomplete last one is left out."""
    return content(path).split(b"\n")[:-1] if path.exists() else []


def trim(path: Path, most: int, keep: Callable[[bytes], bool] = lambda _: False) -> None:
    """Shorten a file of lines of more than `most` bytes to its newest ones, half as many bytes.

    Older lines that `keep` accepts stay too. The file is the same one afterwards: a process that
    has it open to append goes on with it.
    """
    try:
        if path.stat().st_size <= most:
            return
    except FileNotFoundError:
        return
    with path.open("r+b") as file:
        data = file.read()
        cut = data.find(b"\n", len(data) - most // 2) + 1 or len(data)
        old = [line + b"\n" for line in data[:cut].split(b"\n")[:-1] if keep(line)]
        file.seek(0)
        file.write(b"".join(old) + data[cut:])
        file.truncate()


def parse_json(data: str | bytes) -> Any:
    """The value in a JSON text; ValueError for anything else, too deep nesting included."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if it is missing, incomplete or something else."""
    try:
        value = parse_json(content(path).decode())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; incomplete lines, left by crashes, are skipped."""
    found = []
    for line in whole_lines(path):
        with contextlib.suppress(ValueError):
            found.append(parse_json(line))
    return [value for value in found if isinstance(value, dict)]


def refuse_readable(path: Path, what: str) -> None:
    """Raise DeployError if anyone but its owner may read or write the file `path`."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DeployError(
            f"{what} may be read or changed by others: {path.name} has the mode {mode:04o}",
            f"chmod 600 {path.name}; if others have used this machine, treat it as disclosed",
        )


def is_taken(folder: Path) -> bool:
    """Whether `folder` is not empty, or another file is in its place."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def make_folder(path: Path) -> None:
    """Create the folder `path` and its parents; StoreError when that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the folder {path}: {error.strerror or error}",
            "free some space or choose another folder",
        ) from error


def file_name(name: str) -> str:
    """What a file or a folder of `name` is called: its name, percent-encoded, dots too.

    So a name like `../ward/3` does not lead out of a folder. Of one that would be too long for a
    file the beginning is left, and the SHA-256 of the whole after "=", which no other name has.
    """
    encoded = quote(name, safe=" ").replace(".", "%2E")
    if len(encoded) <= MAX_NAME:
        return encoded
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{encoded[: MAX_NAME - len(digest) - 1]}={digest}"


def link_on_the_way(within: Path, place: str | Path) -> Path | None:
    """The first link among the folders from `within` (excluded) to `place` below it; else None."""
    path = within
    for part in Path(place).parts:
        path = path / part
        if path.is_symlink():
            return path
    return None


def refuse_links(within: Path, *places: str | Path) -> None:
    """StoreError if a folder on the way from `within` to one of `places` below it is a link.

    Whatever is written or removed there would be written or removed where it leads: in a folder
    from somebody else, to any folder of the user. Where `within` itself is, the user has said.
    """
    for place in places:
        if link := link_on_the_way(within, place):
            raise StoreError(f"{link} is a link, not a folder", "put the folder itself there")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; of a link the link alone.

    What cannot be removed stays.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
