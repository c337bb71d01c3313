"""Guesses what a CSV of images says: which column holds the paths, and which the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsight.core.errors import DataError
from fedsight.data.cells import separator_in
from fedsight.data.csv_file import csv_rows, listed_file
from fedsight.data.images.formats import is_picture
from fedsight.data.listing import is_there
from fedsight.data.parts import are_parts, part_named
from fedsight.program.draft.base import Asked, Guess

Rows = list[dict[str, str]]
_LOOKED = 2000  # rows
_DELIMITERS = (",", ";", "\t", "|")
_PATHS = ("path", "image", "image_path", "file", "filename", "file_name", "filepath", "img")
_LABELS = ("label", "labels", "class", "class_name", "category", "target", "diagnosis", "finding")
_MORE_LABELS = ("finding labels", "findings", "species", "tag", "tags", "grade", "type", "y")
_MASKS = ("mask", "mask_path", "masks", "segmentation", "label_path", "annotation")
_SITES = ("site", "hospital", "clinic", "center", "centre", "institution", "client", "client_id")
_MOST = 100  # values of a column that may be that of the labels


def table_guess(path: Path, asked: Asked) -> Guess:
    """The source that reads a CSV; DataError names the columns if they cannot be told apart."""
    delimiter, rows = _rows(path)
    if not rows:
        raise DataError(f"'{path}' lists no images", "add a line for each image")
    columns = list(rows[0])
    images = _files(path, rows, columns, _PATHS)
    if not images:
        raise DataError(
            f"'{path}' has no column with the paths of images (columns: {', '.join(columns)})",
            "write each image's path, relative to the CSV's folder, into a column 'path'",
        )
    masks = _files(path, rows, [one for one in columns if one != images[0]], _MASKS)
    used: dict[str, Any] = {"path": path}
    if delimiter != ",":
        used["delimiter"] = delimiter
    if asked.task == "faces" or (asked.task is None and "person" in columns):
        return _people(path, images[0], used, columns)
    if images[0].casefold() != "path":
        used["path_column"] = images[0]
    used |= _known(rows, columns)
    if asked.task in (None, "segment") and masks:
        if masks[0].casefold() != "mask":
            used["mask_column"] = masks[0]
        return Guess("segment", {"name": "masks", **used}, (_said(masks[0], "masks"),))
    rest = [one for one in columns if one not in (*images, *used.values(), "site", "split")]
    return _labelled(path, rows, rest, used, asked)


def _rows(path: Path) -> tuple[str, Rows]:
    """The delimiter that gives the first line most columns, and the first rows."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            first = stream.readline()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}", "give a CSV file") from error
    delimiter = max(_DELIMITERS, key=first.count)
    found: Rows = []
    for _, row in csv_rows(path, [], "", delimiter):
        found.append({key: value.strip() for key, value in row.items()})
        if len(found) >= _LOOKED:
            break
    return delimiter, found


def _files(path: Path, rows: Rows, columns: Sequence[str], usual: Sequence[str]) -> list[str]:
    """The columns whose values are images that exist, those with usual names first."""
    found = []
    for column in columns:
        values = [row[column] for row in rows[:20] if row[column]]
        if values and all(is_picture(one) and is_there(listed_file(path, one)) for one in values):
            found.append(column)
    return sorted(found, key=lambda one: (_rank(one, usual), columns.index(one)))


def _rank(column: str, usual: Sequence[str]) -> int:
    plain = column.strip().casefold()
    return usual.index(plain) if plain in usual else len(usual)


def _known(rows: Rows, columns: Sequence[str]) -> dict[str, str]:
    """The settings that name the columns of sites and parts, where they have other names."""
    found: dict[str, str] = {}
    plain = {one.strip().casefold(): one for one in columns}
    if "site" not in plain:
        site = next((plain[one] for one in _SITES if one in plain), None)
        if site is not None and len(_values(rows, site)) > 1:
            found["site_column"] = site
    if "split" not in plain:
        for column in columns:
            values = _values(rows, column)
            if len(values) <= 4 and are_parts(values) and all(map(part_named, values)):
                found["split_column"] = column
                break
    return found


def _labelled(
    path: Path, rows: Rows, columns: Sequence[str], used: Mapping[str, Any], asked: Asked
) -> Guess:
    """A `manifest`: one label per image, or several."""
    usual = (*_LABELS, *_MORE_LABELS)
    named = [one for one in columns if _rank(one, usual) < len(usual)]
    named.sort(key=lambda one: _rank(one, usual))
    likely = named or [one for one in columns if _few(rows, one)]
    if len(likely) != 1 and not named:
        between = f" ({', '.join(likely)})" if likely else f" (columns: {', '.join(rows[0])})"
        why = "several columns may hold the labels" if likely else "no column seems to hold labels"
        raise DataError(f"'{path}': {why}{between}", "call the column of the labels 'label'")
    column = likely[0]
    data: dict[str, Any] = {"name": "manifest", **used}
    if column != "label":
        data["label_column"] = column
    reasons = [_said(column, "labels")]
    separator = separator_in(row[column] for row in rows)
    empty = any(not row[column] for row in rows)
    task = asked.task or ("multilabel" if separator or empty else "classify")
    if task == "multilabel":
        data["label_separator"] = separator or "|"
        reasons.append(f"labels are separated by '{data['label_separator']}'")
    return Guess(task, data, tuple(reasons))


def _people(path: Path, images: str, used: dict[str, Any], columns: Sequence[str]) -> Guess:
    if "person" not in columns or images != "path":
        raise DataError(
            f"'{path}' has no columns 'path' and 'person' (columns: {', '.join(columns)})",
            "name the columns path, person, site, split in the first line",
        )
    return Guess("faces", {"name": "people", **used}, (_said("person", "people"),))


def _values(rows: Rows, column: str) -> set[str]:
    return {row[column] for row in rows}


def _few(rows: Rows, column: str) -> bool:
    """Whether a column has as few different values as labels have."""
    values: Iterable[str] = _values(rows, column)
    return 2 <= len(set(values)) <= min(_MOST, max(2, len(rows) // 2))


def _said(column: str, what: str) -> str:
    return f"column '{column}' holds the {what}"
