"""The catalogue: each sentence in the other languages, by its English text."""

from __future__ import annotations

import gettext
import struct
from collections.abc import Iterator
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
def entries(language: Language) -> dict[str, str]:
    """Every sentence of the catalogue, in the singular and in the plural, with its translation."""
    file = FOLDER / language / "LC_MESSAGES" / f"{DOMAIN}.mo"
    return {
        english: translated.split("\0")[-1]
        for key, translated in _pairs(file.read_bytes())
        for english in key.split("\0")
        if english
    }


def _pairs(compiled: bytes) -> Iterator[tuple[str, str]]:
    """Keys and translations of a compiled catalogue (GNU gettext's manual, "MO Files")."""
    _, _, count, keys, values, _, _ = struct.unpack_from("<7I", compiled)
    for number in range(count):
        found = []
        for table in (keys, values):
            length, start = struct.unpack_from("<2I", compiled, table + 8 * number)
            found.append(compiled[start : start + length].decode())
        yield found[0], found[1]


@cache
def _opened(language: Language) -> gettext.NullTranslations:
    if language == "en":
        return gettext.NullTranslations()
    return gettext.translation(DOMAIN, FOLDER, [language])
