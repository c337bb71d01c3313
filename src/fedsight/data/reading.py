"""Reads files beside images (annotations, lists), with errors that name the file and the cure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.core.files import content


@contextlib.contextmanager
def reading(name: str | Path, cure: str = "restore the file") -> Iterator[None]:
    """Turns an OSError of the file `name` into a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"'{name}' cannot be read: {error.strerror or error}", cure) from error


def file_bytes(path: Path, cure: str = "restore the file") -> bytes:
    """The content of a file; DataError if it cannot be read."""
    with reading(path, cure):
        return content(path)


def file_text(path: Path) -> str:
    """The text of a UTF-8 file, with a mark or without; DataError if it is not one."""
    try:
        return file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}", "save it as UTF-8") from error
