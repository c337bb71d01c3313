"""What a setting's value should have been, in the user's words instead of a library's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "a text in quotes",
    "list": "a list in brackets",
    "tuple": "a list in brackets",
    "set": "a list in brackets",
    "dict": "a table of settings",
    "model": "a table of settings",
    "path": "a path in quotes",
}
_LIMITS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_long": "at most {max_length} values, and there are {actual_length}",
    "too_short": "at least {min_length} values, and there are {actual_length}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "one of {expected}",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "model_attributes_type": "a table of settings",
    "none_required": "to be left out",
}


def expected(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """What was expected, from pydantic's type of error, its message and its context."""
    if kind in _LIMITS:
        plain = {
            k: int(v) if isinstance(v, float) and v == int(v) else v for k, v in context.items()
        }
        return f"expected {_LIMITS[kind].format(**plain)}".replace(" or ", ", ")
    base, _, rest = kind.rpartition("_")
    if rest in ("type", "parsing") and base in _KINDS:
        return f"expected {_KINDS[base]}"
    if kind == "value_error":
        return _lowered(message.removeprefix("Value error, "))
    return _lowered(message.replace("tuple", "list").split(" for <class")[0])


def cure(kind: str, value: object) -> str | None:
    """How to write a value that is nearly right; None if that cannot be told."""
    if isinstance(value, str):
        if kind in ("list_type", "tuple_type"):
            return f"write [{json.dumps(value, ensure_ascii=False)}]"
        if kind in ("int_type", "float_type", "bool_type"):
            return _unquoted(kind, value.strip())
    if kind == "string_type" and isinstance(value, int | float):
        return f'write "{value}" in quotes'
    return None


def _unquoted(kind: str, text: str) -> str | None:
    if kind == "bool_type":
        word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower())
        return f"write {word or text.lower()} without quotes" if word or _is_bool(text) else None
    for written, why in ((text, "without quotes"), (text.replace(",", "."), "with a point")):
        try:
            (int if kind == "int_type" else float)(written)
        except ValueError:
            continue
        return f"write {written}, {why}"
    return None


def _is_bool(text: str) -> bool:
    return text.lower() in ("true", "false")


def shown(value: object) -> str:
    """A value as TOML has it where Python writes it differently."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _lowered(message: str) -> str:
    return f"{message[:1].lower()}{message[1:]}"
