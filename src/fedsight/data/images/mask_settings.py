"""Settings that say which values or colours of a mask stand for which class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from fedsight.core.errors import Problem
from fedsight.core.registry import nearest
from fedsight.data.images.mask_values import Coding

Pairs = tuple[tuple[str, tuple[Any, ...]], ...]


def colour(value: Any) -> str:
    """A colour as `#rrggbb`, from that form or from [red, green, blue]; ValueError if neither."""
    if isinstance(value, str) and (found := re.fullmatch(r"#?([0-9a-fA-F]{6})", value)):
        return f"#{found[1].lower()}"
    levels = list(value) if isinstance(value, list | tuple) else []
    if len(levels) == 3 and all(type(one) is int and 0 <= one <= 255 for one in levels):
        return "#" + bytes(levels).hex()
    raise ValueError("expected colours as '#rrggbb' or [red, green, blue]")


def _value(value: Any) -> int:
    if type(value) is int and 0 <= value <= 65535:
        return value
    raise ValueError("expected whole numbers from 0 to 65535")


def _values(table: Any) -> Any:
    """A table of one value or a list of them by class, as pairs."""
    if not isinstance(table, Mapping):
        return table
    return tuple(
        (name, tuple(map(_value, each if isinstance(each, list | tuple) else [each])))
        for name, each in table.items()
    )


def _colours(table: Any) -> Any:
    """A table of one colour or a list of them by class, as pairs."""
    if not isinstance(table, Mapping):
        return table
    several = {
        name: isinstance(each, list | tuple) and not all(type(one) is int for one in each)
        for name, each in table.items()
    }
    return tuple(
        (name, tuple(map(colour, each if several[name] else [each])))
        for name, each in table.items()
    )


def _ignored(values: Any) -> Any:
    if not isinstance(values, list | tuple):
        return values
    return tuple(_value(one) if type(one) is int else colour(one) for one in values)


_as_table = PlainSerializer(lambda pairs: {name: list(each) for name, each in pairs})

# the values of each class: {background = 0, lesion = 255, car = [26, 27]}
ByValue = Annotated[
    tuple[tuple[str, tuple[int, ...]], ...],
    Field(strict=False),
    BeforeValidator(_values),
    _as_table,
]
# the colours of each class: {road = "#804080", car = [0, 0, 142]}
ByColour = Annotated[
    tuple[tuple[str, tuple[str, ...]], ...],
    Field(strict=False),
    BeforeValidator(_colours),
    _as_table,
]
# values, or colours, of pixels without a label
Ignored = Annotated[tuple[int | str, ...] | None, Field(strict=False), BeforeValidator(_ignored)]


def problems(
    classes: Sequence[str], values: Pairs, colours: Pairs, ignored: tuple[int | str, ...] | None
) -> list[Problem]:
    """What is wrong with the settings of a mask's values and colours."""
    found = []
    if values and colours:
        cause = "values and colours are both given"
        found.append(Problem("data.colours", cause, "keep the one that the masks have"))
    for key, pairs in (("values", values), ("colours", colours)):
        named = [name for name, _ in pairs]
        for name in named:
            if name not in classes:
                cause = f"'{name}' is not in data.classes"
                found.append(Problem(f"data.{key}", cause, nearest(name, classes)))
        absent = [name for name in classes if pairs and name not in named]
        if absent:
            cause = f"class '{absent[0]}' has no {key[:-1]}"
            found.append(Problem(f"data.{key}", cause, "name one for every class"))
        given = [each for _, several in pairs for each in several] + list(ignored or ())
        for each, times in Counter(given if pairs else ()).items():
            if times > 1:
                cause = f"{each} stands for two things"
                found.append(Problem(f"data.{key}", cause, "name it once"))
    expected = str if colours else int
    for each in ignored or ():
        if not isinstance(each, expected):
            kind, written = ("colours", "colours") if colours else ("values", "whole numbers")
            cause = f"{each!r} is not one of the {kind} that masks are read by"
            found.append(Problem("data.ignored", cause, f"write {written}"))
    return found


def coding(
    classes: Sequence[str], values: Pairs, colours: Pairs, ignored: tuple[int | str, ...] | None
) -> Coding:
    """How masks are read under these settings."""
    return Coding(
        tuple(classes),
        dict(values),
        {name: [_code(one) for one in each] for name, each in colours},
        None if ignored is None else [_code(one) for one in ignored],
    )


def _code(value: int | str) -> int:
    """A colour as 0xRRGGBB; a value as it is."""
    return int(value[1:], 16) if isinstance(value, str) else value
