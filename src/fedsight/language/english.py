"""English that was written elsewhere, told in another language by recognising its sentence.

Errors are raised deep in the rooms, come from other machines, and are kept in the files of runs,
always in English: neither a protocol nor a file depends on what somebody reads. Only where such a
text is shown, its sentence is looked up: `tools/translations.py` puts the f-strings of all errors
into the catalogue, with a named field for each value, and here a text is compared with them. What
a field holds is a path, a name, a number, or such a sentence in its turn. A text that fits no
sentence of the catalogue is shown in English.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from fedsight.language.catalogue import entries
from fedsight.language.current import Language
from fedsight.language.message import Text

_FIELD = re.compile(r"\{(\w+)[^{}]*\}")
_QUOTED = re.compile(r"'\{(\w+)[^{}]*\}'")  # a name that somebody chose
# Fields that hold a word of ours (`images`, `training`), not a name that happens to be one.
_WORDS = frozenset(
    {"modality", "modalities", "unit", "units", "thing", "things", "names", "kind", "lists",
     "headline"}
)  # fmt: skip
_COUNT = re.compile(r"(?P<what>[^\d,:]+)(?P<count>:? [\d,]*\d)")
_DEEPEST = 4  # sentences inside one another
_MOST_PARTS = 5  # places where a text is taken apart
_LONGEST = 4000  # characters; a longer text is no sentence of ours
_LEAST = 4  # letters of its own that a sentence needs to be recognised by
_JOINTS = {"\n  ": "\n  ", "\n": "\n", "; ": "；", ". ": "。"}  # where sentences are put together


@dataclass(frozen=True, slots=True)
class English(Text):
    """A text that is given in English, such as that of an error."""

    english: str

    def text(self, language: Language) -> str:
        """The text, in so far as the catalogue knows its sentences."""
        return self.english if language == "en" else _told(self.english, language, _DEEPEST)

    __str__ = Text.__str__


def from_english(text: Text | str) -> Text:
    """A text for which there is only its English; one that can be told anyway stays as it is."""
    return text if isinstance(text, Text) else English(text)


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence with fields: its own text around them, and how it is translated."""

    pieces: tuple[str, ...]  # one more than fields
    fields: tuple[str, ...]
    quoted: frozenset[str]  # fields that stay as they are
    translated: str

    def values(self, text: str) -> dict[str, str] | None:
        """What stands in the fields if `text` is made from this sentence, else None.

        Each piece is taken where it comes first, which finds a match if there is one, in a time
        that grows only with the length of the text: it may come from a machine that wants to be
        shown a long calculation.
        """
        first, *between, last = self.pieces
        if not text.startswith(first) or not text.endswith(last):
            return None
        found: dict[str, str] = {}
        start, end = len(first), len(text) - len(last)
        for name, piece in zip(self.fields, [*between, None], strict=True):
            place = end if piece is None else text.find(piece, start, end)
            if place < start or found.setdefault(name, text[start:place]) != text[start:place]:
                return None
            start = place + len(piece or "")
        return found


@lru_cache(maxsize=4096)
def _told(text: str, language: Language, depth: int) -> str:
    if (known := _exact(language).get(text)) is not None:
        return known
    if depth == 0 or len(text) > _LONGEST or len(text.split(None, 1)) < 2:
        return text
    for sentence in _sentences(language):
        if (found := sentence.values(text)) is not None:
            values = {
                name: value if name in sentence.quoted else _value(name, value, language, depth - 1)
                for name, value in found.items()
            }
            return sentence.translated.format(**values)
    if (counted := _counted(text, language, depth)) is not None:
        return counted
    return _in_parts(text, language, depth)


def _counted(text: str, language: Language, depth: int) -> str | None:
    """A list of counts, `dead links 30, hidden 4` or `at two sites: 3`; None if it is none."""
    parts = [_COUNT.fullmatch(part) for part in text.split(", ")]
    if not all(parts):
        return None
    told = [
        f"{_told(part['what'], language, depth - 1)}{part['count'].replace(': ', '：')}"
        for part in parts
        if part is not None
    ]
    return "，".join(told)


def _value(name: str, value: str, language: Language, depth: int) -> str:
    """A single word may be a name that happens to be a word of ours: a class called `test`."""
    if name.rstrip("0123456789").lower() in _WORDS:
        return _told(value, language, depth)
    quoted = value[:1] in "'\"" and value[:1] == value[-1:]
    return _told(value, language, depth) if " " in value and not quoted else value


def _in_parts(text: str, language: Language, depth: int) -> str:
    """Several sentences, each told by itself; unchanged if the first of them is not known."""
    if text.endswith(".") and (told := _told(text[:-1], language, depth - 1)) != text[:-1]:
        return f"{told}。"
    for joint, between in _JOINTS.items():
        pieces = text.split(joint, _MOST_PARTS)
        for count in range(1, len(pieces)):
            first, rest = joint.join(pieces[:count]), joint.join(pieces[count:])
            if (told := _told(first, language, depth - 1)) != first:
                return f"{told}{between}{_told(rest, language, depth - 1)}"
    return text


@cache
def _exact(language: Language) -> dict[str, str]:
    """The sentences without fields."""
    return {
        _unescaped(english): _unescaped(translated)
        for english, translated in entries(language).items()
        if not _FIELD.search(english)
    }


@cache
def _sentences(language: Language) -> tuple[_Sentence, ...]:
    """The sentences with fields, those with the most text of their own first."""
    found = []
    for english, translated in entries(language).items():
        own = tuple(_unescaped(piece) for piece in _FIELD.split(english)[::2])
        fields = tuple(_FIELD.findall(english))
        if not fields or sum(char.isalpha() for piece in own for char in piece) < _LEAST:
            continue
        quoted = frozenset(_QUOTED.findall(english))
        bare = _FIELD.sub(lambda field: f"{{{field[1]}}}", translated)  # values come formatted
        found.append((sum(map(len, own)), _Sentence(own, fields, quoted, bare)))
    return tuple(one for _, one in sorted(found, key=lambda pair: -pair[0]))


def _unescaped(piece: str) -> str:
    return piece.replace("{{", "{").replace("}}", "}")
