"""Texts in the rows of CSV and JSONL files, with the lines that they are in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.csv_file import Row, csv_rows

COLUMNS = ("text", "label", "site", "split")  # those with a meaning; others are ignored
SUFFIXES = frozenset({".csv", ".jsonl"})


def text_rows(path: Path, needed: Sequence[str], delimiter: str = ",") -> Iterator[Row]:
    """The rows of a `.jsonl` or CSV file, which must have the columns `needed`.

    Raises DataError naming file and line for a row that is broken, and for a file that cannot be
    read.
    """
    if path.suffix.lower() != ".jsonl":
        cure = f"name the columns in the first line: {','.join(COLUMNS)}"
        for line, row in csv_rows(path, needed, cure, delimiter):
            yield line, {key: row[key] for key in COLUMNS if key in row}
        return
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from _objects(stream, path, needed)
    except OSError as error:
        cause = f"'{path}' cannot be read: {error.strerror or error}"
        raise DataError(cause, "give the path of a .csv or .jsonl file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}", "save it as UTF-8") from error


def _objects(stream: Iterable[str], path: Path, needed: Sequence[str]) -> Iterator[Row]:
    for line, text in enumerate(stream, 1):
        where = f"{path}, line {line}"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {error}", "write one JSON object per line") from error
        given = isinstance(values, dict) and set(needed) <= values.keys()
        used = {key: values[key] for key in COLUMNS if key in values} if given else {}
        if isinstance(used.get("label"), list):
            used["label"] = json.dumps(used["label"])  # several labels, as a CSV's cell has them
        if not given or not all(isinstance(value, str) for value in used.values()):
            names = " and ".join(f"'{name}'" for name in needed)
            example = json.dumps(dict.fromkeys(needed, "..."))
            cause = f"{where}: expected an object with {names}, all of them strings"
            raise DataError(cause, f"write {example}")
        yield line, used
