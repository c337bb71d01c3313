"""Messages: sentences that can be told in every language, with the values that they quote.

    message("Better at {n} of {total} sites", n=3, total=5).text("zh")

The English sentence is the key of the catalogue (`zh.po`), as in gettext, so it has to stand in the
code as it is: no f-string, no variable. `tools/translations.py` collects the sentences from there.
A message is told when it is shown, not when it is made: it can be stored, compared, pickled, and
be a value of another message, which then tells it in its own language.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedsight.language.catalogue import template
from fedsight.language.current import Language, current_language


class Text(ABC):
    """Something that can be told in every language."""

    __slots__ = ()

    @abstractmethod
    def text(self, language: Language) -> str:
        """What it says in one language."""

    def __str__(self) -> str:
        return self.text(current_language())

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


@dataclass(frozen=True, slots=True)
class Message(Text):
    """A sentence with named fields. `many` and `n` are given if it depends on a number."""

    one: str
    values: tuple[tuple[str, object], ...] = ()
    many: str | None = None
    n: int = 1

    def text(self, language: Language) -> str:
        """The sentence, with its values in place."""
        told = {name: _told(value, language) for name, value in self.values}
        return template(self.one, self.many, self.n, language).format(**told)

    __str__ = Text.__str__  # not the one that a data class would have


@dataclass(frozen=True, slots=True)
class Listing(Text):
    """Texts as a list in a sentence: `a, b and c`."""

    parts: tuple[Text | str, ...]
    last: Literal["and", "or"] = "and"

    def text(self, language: Language) -> str:
        """The list, with the word that its language puts before the last part."""
        *first, last = (text_in(part, language) for part in self.parts)
        if not first:
            return last
        if language == "zh":
            return f"{'、'.join(first)}{'和' if self.last == 'and' else '或'}{last}"
        return f"{', '.join(first)} {self.last} {last}"

    __str__ = Text.__str__


@dataclass(frozen=True, slots=True)
class Sentences(Text):
    """Sentences one after the other; Chinese puts no blank between them."""

    parts: tuple[Text | str, ...]

    def text(self, language: Language) -> str:
        """The sentences as one text."""
        return ("" if language == "zh" else " ").join(
            text_in(part, language) for part in self.parts
        )

    __str__ = Text.__str__


def message(english: str, /, **values: object) -> Message:
    """A sentence; `{name}` stands for a value, `{name:,}` for one with a format."""
    return Message(english, tuple(values.items()))


def plural(one: str, many: str, n: int, /, **values: object) -> Message:
    """A sentence that depends on a number, which is also the value `{n}`."""
    return Message(one, (("n", n), *values.items()), many, n)


def listed(parts: Iterable[Text | str], last: Literal["and", "or"] = "and") -> Text | str:
    """Texts as a list in a sentence, `a, b and c`; an empty text if there are none."""
    found = tuple(parts)
    return Listing(found, last) if found else ""


def sentences(parts: Iterable[Text | str]) -> Sentences:
    """Sentences one after the other."""
    return Sentences(tuple(parts))


def text_in(text: Text | str, language: Language) -> str:
    """A text in one language; a string is the same in all."""
    return text.text(language) if isinstance(text, Text) else text


def _told(value: object, language: Language) -> object:
    return value.text(language) if isinstance(value, Text) else value
