"""Labels in a table of Hugging Face `datasets`: one or several in each row, of any type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedsight.core.errors import DataError

_CURE = "set data.label_column to a column of class names or numbers, or lists of them"


def vocabulary(feature: Any) -> tuple[str, ...] | None:
    """The class names that a column's type states: of its values, or of those in its lists."""
    inner = _inner(feature)
    names = getattr(feature if inner is None else inner, "names", None)
    return tuple(names) if names else None


def labels_of(feature: Any, value: Any, where: str) -> str | list[str]:
    """The label in a row, or the list of its labels.

    Raises DataError at `where` for no label, a number without a name, a value that is not a class
    (a table, a fraction, bytes), and a list of lists.
    """
    if value is None:
        raise DataError(f"{where}: there is no label", "fill it in, or remove the row")
    if isinstance(value, dict):
        keys = ", ".join(map(str, value))
        raise DataError(f"{where}: the label is a table with {keys}, not a class", _CURE)
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return _word(value, getattr(feature, "names", None), where)
    names = getattr(_inner(feature), "names", None)
    return list(dict.fromkeys(_word(one, names, where) for one in value))


def check_lists(values: Sequence[Any], place: str) -> None:
    """DataError if lists of numbers seem to say 0 or 1 for every class, not which classes."""
    lists = [list(value) for value in values if isinstance(value, list | tuple)]
    flat = [value for one in lists for value in one]
    if not flat or not all(isinstance(value, int | float) and value in (0, 1) for value in flat):
        return
    one_length = len({len(one) for one in lists}) == 1
    if one_length and any(len(set(one)) < len(one) for one in lists):
        raise DataError(
            f"{place}: the labels are lists of 0 and 1, as if for every class",
            "save the names of the classes that an image shows, as a list of strings",
        )


def _inner(feature: Any) -> Any:
    """The type of what is in a list; None if the type is not that of lists."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _word(value: Any, names: Sequence[str] | None, where: str) -> str:
    """The class that one value names."""
    if names is not None:
        if isinstance(value, int) and 0 <= value < len(names):
            return names[value]
        raise DataError(f"{where}: label {value} has no name", "remove the row")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value).strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # what a column of whole numbers becomes when some are missing
    if isinstance(value, float):
        said = f"is {value}: not a class" if math.isfinite(value) else f"is {value}: no label"
        raise DataError(f"{where}: the label {said}", _CURE)
    raise DataError(f"{where}: a label is a {type(value).__name__}, not a class", _CURE)
