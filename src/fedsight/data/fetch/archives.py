"""Archives of packages (wheel, npm tarball, deb), from which only data files are copied."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from fedsight.core.errors import DataError, StoreError

_AGAIN = "fetch the package again"
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60  # bytes; ar(5)


def unpack(archive: Path, inside: str, members: tuple[str, ...], folder: Path) -> dict[str, int]:
    """Copy the files below `inside` whose names fit `members` into `folder`: {name: bytes}.

    A pattern has as many parts as the names it fits. Nothing is imported or run, links are not
    followed, no permission of the archive is kept. Raises DataError for an archive that is broken,
    contains none of the members, or has one that would end up outside `folder`; StoreError if the
    disk is full.
    """
    found: dict[str, int] = {}
    try:
        for full, data in _entries(archive, inside, members):
            name = full[len(inside) + 1 :]
            parts = name.split("/")
            if "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
                raise DataError(f"'{archive.name}' has a member with the unsafe name '{full}'")
            if data is None or name in found:
                what = "is not a regular file" if data is None else "occurs twice"
                raise DataError(f"'{archive.name}': member '{full}' {what}", _AGAIN)
            _write(folder / name, data)
            found[name] = len(data)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"'{archive.name}' is broken: {error}", _AGAIN) from error
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"'{archive.name}' cannot be read: {error}", _AGAIN) from error
    if not found:
        raise DataError(f"'{archive.name}' has no data in '{inside}'", _AGAIN)
    return found


def _entries(
    archive: Path, inside: str, members: tuple[str, ...]
) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of the wanted members; None for one that is not a regular file."""
    wanted = [[*inside.split("/"), *pattern.split("/")] for pattern in members]

    def fits(name: str) -> bool:
        parts = name.split("/")
        return any(
            len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
            for pattern in wanted
        )

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if fits(entry.filename):
                    link = entry.external_attr >> 28 == 0o12  # the mode's file type
                    yield entry.filename, None if link else opened.read(entry)
        return
    stream = _deb(archive) if archive.suffix == ".deb" else archive.open("rb")
    with stream, tarfile.open(fileobj=stream) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if fits(name):
                file = tar.extractfile(member) if member.isreg() else None
                yield name, None if file is None else file.read()


def _deb(archive: Path) -> io.BytesIO:
    """The tar of a Debian package's files: the member data.tar.* of an ar archive, deb(5)."""
    content = archive.read_bytes()
    if content[: len(_AR_MAGIC)] != _AR_MAGIC:
        raise ValueError("not a Debian package")
    place = len(_AR_MAGIC)
    while place + _AR_HEADER <= len(content):
        header = content[place : place + _AR_HEADER]
        size, place = int(header[48:58]), place + _AR_HEADER
        if header.startswith(b"data.tar"):
            return io.BytesIO(content[place : place + size])
        place += size + size % 2
    raise ValueError("the Debian package has no files")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", "free some space") from error
