"""Texts in the rows of CSV and JSONL files, with the lines that they are in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.columns import UnreadParts, recognised
from fedsight.data.csv_file import Row, csv_rows

COLUMNS = ("text", "label", "site", "split")  # those with a meaning; others are ignored
SUFFIXES = frozenset({".csv", ".jsonl"})


def text_rows(
    path: Path, needed: Sequence[str], delimiter: str = ",", group: str | None = None
) -> Iterator[Row]:
    """The rows of a `.jsonl` or CSV file, which must have the columns `needed`, and `group`.

    Raises DataError naming file and line for a row that is broken, and for a file that cannot be
    read.
    """
    if path.suffix.lower() != ".jsonl":
        cure = f"name the columns in the first line: {','.join(COLUMNS)}"
        further = [*needed, *([group] if group else [])]
        yield from _read(csv_rows(path, further, cure, delimiter), path, group)
        return
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from _read(_objects(stream, path, needed, group), path, group)
    except OSError as error:
        cause = f"'{path}' cannot be read: {error.strerror or error}"
        raise DataError(cause, "give the path of a .csv or .jsonl file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}", "save it as UTF-8") from error


def _read(rows: Iterable[Row], path: Path, group: str | None) -> Iterator[Row]:
    """The columns that have a meaning; DataError for another that says the parts."""
    used = (*COLUMNS, group) if group else COLUMNS
    unread, stated = UnreadParts(used), False
    for line, row in rows:
        named = recognised(row, used)
        unread.look(named)
        stated = stated or "split" in named
        yield line, {key: named[key] for key in used if key in named}
    if not stated:
        unread.refuse(path, "call the column 'split'")


def _objects(
    stream: Iterable[str], path: Path, needed: Sequence[str], group: str | None
) -> Iterator[Row]:
    for line, text in enumerate(stream, 1):
        where = f"{path}, line {line}"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {error}", "write one JSON object per line") from error
        given = isinstance(values, dict) and set(needed) <= values.keys()
        named = dict(recognised(values, COLUMNS)) if given else {}
        if isinstance(named.get("label"), list):
            named["label"] = json.dumps(named["label"])  # several labels, as a CSV's cell has them
        used = [named[key] for key in COLUMNS if key in named]
        if not given or not all(isinstance(value, str) for value in used):
            names = " and ".join(f"'{name}'" for name in needed)
            example = json.dumps(dict.fromkeys(needed, "..."))
            cause = f"{where}: expected an object with {names}, all of them strings"
            raise DataError(cause, f"write {example}")
        if group is not None:
            if group not in values:
                found = ", ".join(map(str, values))
                raise DataError(
                    f"{where}: there is no key '{group}' (found: {found})", "correct data.group"
                )
            value = values[group]
            named[group] = "" if value is None else str(value)
        yield line, {key: value for key, value in named.items() if isinstance(value, str)}
