"""The rows of a CSV or JSONL file with a text each, told by their lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedsight.core.errors import DataError

COLUMNS = ("text", "label", "site", "split")  # those that mean something; others are left aside
SUFFIXES = frozenset({".csv", ".jsonl"})

TextRow = tuple[int, dict[str, str]]  # line, and the values by column


def text_rows(path: Path, needed: Sequence[str]) -> Iterator[TextRow]:
    """Each row, of which the columns `needed` must be there; `.jsonl` has objects, else it is CSV.

    Raises DataError naming file and line for a row that is none, and for a file that cannot be
    read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            read = _objects if path.suffix.lower() == ".jsonl" else _table
            yield from read(stream, path, needed)
    except OSError as error:
        cause = f"'{path}' cannot be read: {error.strerror or error}"
        raise DataError(cause, "give a .csv or .jsonl file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}", "save it as UTF-8") from error


def _objects(stream: Iterable[str], path: Path, needed: Sequence[str]) -> Iterator[TextRow]:
    for line, text in enumerate(stream, 1):
        where = f"{path}, line {line}"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {error}", "write one JSON object a line") from error
        given = isinstance(values, dict) and set(needed) <= values.keys()
        used = {key: values[key] for key in COLUMNS if key in values} if given else {}
        if not given or not all(isinstance(value, str) for value in used.values()):
            names = " and ".join(f"'{name}'" for name in needed)
            example = json.dumps(dict.fromkeys(needed, "..."))
            raise DataError(
                f"{where}: there must be {names}, and all must be texts", f"write {example}"
            )
        yield line, used


def _table(stream: Iterable[str], path: Path, needed: Sequence[str]) -> Iterator[TextRow]:
    rows = csv.DictReader(stream, strict=True)
    try:
        missing = set(needed) - set(rows.fieldnames or ())
        if missing:
            cause = f"{path}, line 1: there is no column '{max(missing)}'"
            raise DataError(cause, f"name the columns in the first line: {','.join(COLUMNS)}")
        for row in rows:
            if None in row or None in row.values():
                cause = f"{path}, line {rows.line_num} has more or fewer values than the first line"
                raise DataError(cause, "put texts that hold commas in quotes")
            yield rows.line_num, {key: row[key] for key in COLUMNS if key in row}
    except csv.Error as error:
        where = f"{path}, line {rows.line_num + 1}"
        raise DataError(f"{where}: {error}", "correct the quotes of this line") from error
