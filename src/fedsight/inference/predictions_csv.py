"""Predictions as a CSV file for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsight.core.files import make_folder, write_atomically
from fedsight.inference.predict import Prediction

COLUMNS = (
    "path", "line", "label", "probability", "sure", "calibrated", "unlike", "set", "error",
)  # fmt: skip
BOX_COLUMNS = ("path", "label", "probability", "left", "top", "right", "bottom", "error")
# where a coverage was asked for: the classes that the object may have, and the box that holds it
OUTER = ("set", "outer_left", "outer_top", "outer_right", "outer_bottom")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets compute (OWASP, CSV Injection)

Cell = str | float | None


def write_csv(found: Sequence[Prediction], boxes: bool, path: Path) -> None:
    """Write `found` to `path`, UTF-8, whole or not at all; StoreError if that is not possible.

    One row each in COLUMNS; with `boxes` one row for each box in BOX_COLUMNS, in pixels of the
    file, and one without a label for an image in which nothing is found; where a coverage was asked
    for they have those of OUTER too. `sure` is yes or no where
    a confidence was asked for; `calibrated`, `unlike` (yes or no) and `set` (a JSON list of labels,
    the most probable first) are what the run knows of its answers. A text that a spreadsheet would
    take for a formula begins with '.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    outer = boxes and any(one.classes is not None for one in found)
    writer.writerow((*BOX_COLUMNS, *OUTER) if outer else BOX_COLUMNS if boxes else COLUMNS)
    for one in found:
        for row in _box_rows(one, outer) if boxes else [_row(one)]:
            writer.writerow([_safe(cell) for cell in row])
    make_folder(path.parent)
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _row(one: Prediction) -> tuple[Cell, ...]:
    held = None if one.classes is None else _listed(one.classes)
    return (
        str(one.path), one.line, one.label, one.probability, _said(one.sure), one.calibrated,
        _said(one.unlike), held, one.error,
    )  # fmt: skip


def _said(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _box_rows(one: Prediction, outer: bool) -> Iterator[tuple[Cell, ...]]:
    found = [] if one.answer is None else one.answer.details.get("boxes", ())
    for box in found:
        further = (_listed(box["set"]), *box["outer"]) if outer else ()
        yield (str(one.path), box["label"], box["score"], *box["box"], None, *further)
    if not found:
        yield (str(one.path), *(None,) * 6, one.error, *(None,) * (len(OUTER) if outer else 0))


def _listed(labels: Sequence[str]) -> str:
    return json.dumps(labels, ensure_ascii=False)


def _safe(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
