"""`Settings`, the base class of every part of a program, and problems with their values."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fedsight.core import wording
from fedsight.core.errors import Problem

_OPENING = ("[", "{", '"', "'")


class Settings(BaseModel):
    """Base class of everything that a user can write in a config file.

    Fields are typed, immutable and checked on construction; unknown fields are rejected.
    `registered` is the name under which a registry holds the class (None for a plain section).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    registered: ClassVar[str | None] = None

    def table(self) -> dict[str, Any]:
        """The settings as plain values (for TOML and JSON), led by the registered name if any."""
        values = self.model_dump(mode="json")
        return values if self.registered is None else {"name": self.registered, **values}

    def meaning(self) -> dict[str, Any]:
        """`table()` without paths, because the place of a file does not determine its content.

        A path that is not set is kept, because the absence of a file has a meaning.
        """
        return {
            key: value
            for key, value in self.table().items()
            if not isinstance(getattr(self, key, None), Path)
        }

    def needs(self) -> tuple[str, ...]:
        """The names of data sets that must be fetched first (`fedsight data get NAME`)."""
        return ()

    def anchored(self, base: Path) -> Self:
        """The same settings with relative paths resolved against `base`."""
        paths = {
            key: base / value
            for key in type(self).model_fields
            for value in [getattr(self, key)]
            if isinstance(value, Path) and not value.is_absolute()
        }
        return self.model_copy(update=paths) if paths else self


def assignments(texts: Sequence[str], example: str) -> tuple[list[tuple[str, Any]], list[Problem]]:
    """Parse `["size=64", "fit=crop"]` to [("size", 64), ("fit", "crop")]: values are TOML or text.

    Also returns a problem for each text that does not have the form key=value, and shows `example`
    in it.
    """
    found: list[tuple[str, Any]] = []
    problems: list[Problem] = []
    for item in texts:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            cause = f"'{item}' is not of the form key=value"
            problems.append(Problem("--set", cause, f"write for example --set {example}"))
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
            if text.strip().startswith(_OPENING):
                problems.append(_unclosed(key.strip(), text.strip()))
                continue
        found.append((key.strip(), value))
    return found, problems


def _unclosed(key: str, text: str) -> Problem:
    """The problem of a value that begins like a list, a table or a string of TOML and is none."""
    what = {"[": "list", "{": "table"}.get(text[0], "text in quotes")
    cause = f"{text} is not a {what} of TOML"
    cure = f"""put the whole in single quotes, and texts in double ones: --set '{key}=["a", "b"]'"""
    if what == "text in quotes":
        cure = f"close the quotes, or leave them out: --set {key}={text.strip(text[0])}"
    return Problem(key, cause, cure)


def problems_of(section: str, kind: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Pydantic's errors as problems of a section (empty: top level), each with its cure.

    The errors of a setting's alternatives become one problem.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for item in error.errors():
        # Strings after the first name alternatives of a type, not a place in the file.
        place = [*item["loc"][:1], *(part for part in item["loc"][1:] if isinstance(part, int))]
        found.setdefault(".".join(filter(None, [section, *map(str, place)])), []).append(item)
    return [_problem(where, kind, items) for where, items in found.items()]


def _problem(where: str, kind: type[BaseModel], items: list[ErrorDetails]) -> Problem:
    first = items[0]
    if first["type"] == "missing":
        return Problem(where, "this setting is required", f"write {first['loc'][-1]} = ...")
    messages = [wording.expected(item["type"], item["msg"], item.get("ctx", {})) for item in items]
    cause = (
        f"{wording.shown(first['input'])} does not fit: {'; or: '.join(dict.fromkeys(messages))}"
    )
    # With several alternatives, nobody knows which of them was meant.
    if len(items) == 1 and (known := wording.cure(first["type"], first["input"])):
        return Problem(where, cause, known)
    field = kind.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    if field is None or field.is_required():
        return Problem(where, cause, "correct the value")
    default = field.get_default()
    used = "" if default is None else f" for {json.dumps(default, default=str)}"
    return Problem(where, cause, f"correct the value, or leave it out{used}")


def without_none(value: Any) -> Any:
    """Leave out settings that are None: TOML has no null, and a missing key means the same."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return value
