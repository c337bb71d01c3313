"""Lists of parts in a config: names, and tables for those that have settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from fedsight.core.errors import ConfigError, Problem
from fedsight.core.registry import Registry, nearest
from fedsight.core.settings import Settings, problems_of

T = TypeVar("T", bound=Settings)


def read(value: Any, base: type[Any], registry: Registry[T], where: str, example: str) -> Any:
    """The parts in a config's list of names and tables; other values are left as they are.

    `base` is the class of the parts, whose objects may be in the list too, `where` the key of the
    list, and `example` the cure that shows one. Raises ConfigError for an unknown name, or settings
    that a part does not have.
    """
    if not isinstance(value, list | tuple):
        return value
    problems: list[Problem] = []
    found: list[T] = []
    for number, item in enumerate(value):
        try:
            found.append(
                item
                if isinstance(item, base)
                else read_one(item, registry, f"{where}.{number}", example)
            )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def read_one(item: Any, registry: Registry[T], where: str, example: str) -> T:
    """The part that a config names, or describes by a table; ConfigError as in `read`."""
    table = {"name": item} if isinstance(item, str) else item
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        cause = f"{item!r:.80} is neither the name of a part nor a table with its name"
        raise ConfigError([Problem(where, cause, example)])
    values = {key: value for key, value in table.items() if key != "name"}
    try:
        kind = registry.get(table["name"])
        return kind.model_validate(values)
    except ConfigError as error:
        raise ConfigError([Problem(where, one.cause, one.cure) for one in error.problems]) from None
    except ValidationError as error:
        problems = [
            Problem(
                f"{where}.{key}",
                "there is no such setting",
                nearest(str(key), kind.model_fields) if kind.model_fields else "leave it out",
            )
            for key in values
            if key not in kind.model_fields
        ]
        if not problems:
            problems = problems_of(where, kind, error)
        raise ConfigError(problems) from None


def written(chosen: Sequence[Settings]) -> list[Any]:
    """The list for a config: names, and tables for those that have settings."""
    tables = (one.table() for one in chosen)
    return [table if len(table) > 1 else table["name"] for table in tables]
