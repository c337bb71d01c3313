"""Settings that are stated once for all sites, or for each site by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer

from fedsight.core.errors import DataError
from fedsight.core.registry import nearest

EVERYWHERE = ""  # the site of what is stated for all of them
T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """How a setting is written, in words; its type says how it is kept."""

    words: str


Labels = tuple[tuple[str, str], ...]  # pairs of a name in the files and a class


def _in_order(value: Any) -> Any:
    """A list as a tuple; anything else stays, and is refused."""
    return tuple(value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    """A list of classes, or a table of such lists by site, as pairs (site, classes)."""
    if isinstance(value, Mapping):
        return tuple((site, _in_order(names)) for site, names in value.items())
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return ((EVERYWHERE, tuple(value)),)
    return value


def _listed(pairs: tuple[tuple[str, tuple[Any, ...]], ...]) -> Any:
    table = {site: list(values) for site, values in pairs}
    return table.get(EVERYWHERE, table)


def _maps(value: Any) -> Any:
    """A table of classes by name, or a table of such tables by site, as pairs (site, pairs)."""
    if not isinstance(value, Mapping):
        return value
    inner = [isinstance(one, Mapping) for one in value.values()]
    if any(inner) and not all(inner):
        raise ValueError("expected a table of names, or a table for each site, and not both in one")
    if any(inner):
        return tuple((site, tuple(own.items())) for site, own in value.items())
    return ((EVERYWHERE, tuple(value.items())),)


def _mapped(pairs: tuple[tuple[str, Labels], ...]) -> Any:
    table = {site: dict(own) for site, own in pairs}
    return table.get(EVERYWHERE, table)


def _numbers(value: Any) -> Any:
    """A list of numbers, or a table of such lists by site, as pairs (site, numbers)."""
    if isinstance(value, Mapping):
        return tuple((site, _in_order(numbers)) for site, numbers in value.items())
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return ((EVERYWHERE, tuple(map(float, value))),)
    return value


def _names(value: Any) -> Any:
    """A class, or a table of classes by site, as pairs (site, class)."""
    if isinstance(value, str):
        return ((EVERYWHERE, value),)
    return tuple(value.items()) if isinstance(value, Mapping) else value


def _named(pairs: tuple[tuple[str, str], ...]) -> Any:
    table = dict(pairs)
    return table.get(EVERYWHERE, table)


# Classes: ["cat"], or by site {clinic = ["cat"], zoo = ["cat", "lion"]}.
Classes = Annotated[
    tuple[tuple[str, tuple[str, ...]], ...],
    Field(strict=False),
    BeforeValidator(_lists),
    PlainSerializer(_listed),
    Form("list of text, or table of such lists by site"),
]
# Names and their classes: {MM = "melanoma"}, or by site {lyon = {MM = "melanoma"}}.
ClassMap = Annotated[
    tuple[tuple[str, Labels], ...],
    Field(strict=False),
    BeforeValidator(_maps),
    PlainSerializer(_mapped),
    Form("table of text, or table of such tables by site"),
]
# Numbers: [0.5], or by site {lyon = [0.4], oslo = [0.6]}.
Numbers = Annotated[
    tuple[tuple[str, tuple[float, ...]], ...],
    Field(strict=False),
    BeforeValidator(_numbers),
    PlainSerializer(_listed),
    Form("list of number, or table of such lists by site"),
]
# A class: "other", or by site {lyon = "other"}.
ClassName = Annotated[
    tuple[tuple[str, str], ...],
    Field(strict=False),
    BeforeValidator(_names),
    PlainSerializer(_named),
    Form("text, or table of text by site"),
]


def at(pairs: Iterable[tuple[str, T]] | None, site: str | None) -> T | None:
    """What is stated for `site`, or for all sites; None if nothing is."""
    table = dict(pairs or ())
    return table.get(EVERYWHERE, table.get(site or EVERYWHERE))


def check_sites(
    pairs: Iterable[tuple[str, Any]] | None, setting: str, sites: Iterable[str]
) -> None:
    """Raise DataError if `setting` names a site that is not one of `sites`."""
    known = sorted(set(sites))
    for site, _ in pairs or ():
        if site != EVERYWHERE and site not in known:
            cure = nearest(site, known) if known else "state it once, for all sites"
            raise DataError(f"data.{setting} names '{site}', which is not a site", cure)


def classes_of(pairs: Sequence[tuple[str, Sequence[str]]] | None) -> list[str]:
    """All classes that are named for any site, each once."""
    return list(dict.fromkeys(name for _, names in pairs or () for name in names))
