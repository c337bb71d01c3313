"""The catalogue: each sentence in the other languages, by its English text."""

from __future__ import annotations

import gettext
from functools import cache
from pathlib import Path

from fedsight.language.current import Language

FOLDER = Path(__file__).parent
DOMAIN = "fedsight"


def template(one: str, many: str | None, n: int, language: Language) -> str:
    """A sentence with its fields still open; English where the catalogue has no other."""
    if many is None:
        return _opened(language).gettext(one)
    return _opened(language).ngettext(one, many, n)


@cache
def _opened(language: Language) -> gettext.NullTranslations:
    if language == "en":
        return gettext.NullTranslations()
    return gettext.translation(DOMAIN, FOLDER, [language])
