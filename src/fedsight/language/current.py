"""The language in which people are spoken to: asked for, else that of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeAlias

Language: TypeAlias = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_within: ContextVar[Language | None] = ContextVar("language", default=None)
_chosen: list[Language] = []  # for the whole process: threads do not share context variables


def current_language() -> Language:
    """The language of `with using(...)`, else the chosen one, else the environment's."""
    within = _within.get()
    if within is not None:
        return within
    return _chosen[-1] if _chosen else environment_language(os.environ)


def choose(language: Language | None) -> None:
    """Choose the language of this process; None leaves it to the environment."""
    _chosen[:] = [] if language is None else [language]


@contextmanager
def using(language: Language) -> Iterator[None]:
    """Another language for a while, in this thread or task: `with using("zh"): ...`."""
    token = _within.set(language)
    try:
        yield
    finally:
        _within.reset(token)


def environment_language(environment: Mapping[str, str]) -> Language:
    """Chinese if the locale for messages is a Chinese one, else English.

    As POSIX has it, the first of LC_ALL, LC_MESSAGES and LANG that is not empty decides.
    """
    given = (environment.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next((value for value in given if value), "C")
    return "zh" if re.split(r"[_.@-]", locale)[0].lower() == "zh" else "en"
