"""Cells of a table that hold several labels: how they are read, and how they are recognised."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from fedsight.core.errors import DataError

_SURE = ("|", ";", "\n", "\t")  # hardly ever part of a name
_UNSURE = (",", "/", "+", "&")  # often part of a name


def is_list(cell: str) -> bool:
    """Whether a cell is a list as Python or JSON writes it."""
    text = cell.strip()
    ends = text[:1] + text[-1:]
    return ends == "[]" or (ends in ("()", "{}") and ("'" in text or '"' in text))


def labels_in(cell: str, separator: str, place: str) -> list[str]:
    """The labels in a cell, each once: with `separator` between them, or as a written list.

    Raises DataError at `place` for a list that cannot be read.
    """
    if not is_list(cell):
        found = [word.strip() for word in cell.split(separator)]
        return list(dict.fromkeys(word for word in found if word))
    try:
        values = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list | tuple | set | frozenset) or not all(
        isinstance(value, str | int) and not isinstance(value, bool) for value in values
    ):
        raise DataError(
            f"{place}: '{cell.strip()[:60]}' is not a list of labels",
            f"write the labels with '{separator}' between them",
        )
    return list(dict.fromkeys(str(value).strip() for value in values if str(value).strip()))


def separator_in(labels: Iterable[str]) -> str | None:
    """The character that seems to separate several labels in one; None if there is none.

    With `|` or `;`, at least half of the labels are combinations, or what is between the
    separators occurs on its own or in another combination. With a character that is often part of
    a name, this must hold for every part, and one part must occur on its own unless half of the
    labels are combinations. Lists in brackets are given as ",".
    """
    names = set(labels)
    if any(is_list(name) and "," in name for name in names) or (
        names and all(is_list(name) for name in names)
    ):
        return ","
    for separator in (*_SURE, *_UNSURE):
        split = {n: [p.strip() for p in n.split(separator)] for n in names if separator in n}
        split = {n: parts for n, parts in split.items() if len([p for p in parts if p]) > 1}
        if not split:
            continue
        if separator in _SURE and 2 * len(split) >= len(names):
            return separator
        for name, parts in split.items():
            elsewhere = {p for other, found in split.items() if other != name for p in found}
            known = [part for part in parts if part in names or part in elsewhere]
            if known and separator in _SURE:
                return separator
            alone = any(part in names for part in parts)
            if len(known) == len(parts) and (alone or 2 * len(split) >= len(names)):
                return separator
    return None


def refuse_combined(labels: Iterable[str], place: str) -> None:
    """DataError at `place` if labels that are taken for one class each seem to be several."""
    names = set(labels)
    separator = separator_in(names)
    if separator is None:
        return
    example = min((name for name in names if separator in name or is_list(name)), key=len)
    shown = {"\n": "\\n", "\t": "\\t"}.get(separator, separator)
    raise DataError(
        f"{place}: labels such as '{example[:80]}' seem to be several in one",
        f'for several labels an image, set data.label_separator = "{shown}" and '
        "task.name = 'multilabel'; if each is one class, list all classes in data.classes",
    )
