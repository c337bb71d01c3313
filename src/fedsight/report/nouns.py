"""What the sites hold, images or texts: the words for it in every sentence of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsight.language.message import Text, listed, message
from fedsight.report.words import Words


@dataclass(frozen=True)
class Nouns:
    """One of them, several of them, and one with its article."""

    one: Words
    many: Words
    article: Words


def nouns(modality: str) -> Nouns:
    """The words for a modality, `image` or `text`."""
    if modality == "text":
        return Nouns(message("text"), message("texts"), message("a text"))
    return Nouns(message("image"), message("images"), message("an image"))


def all_of(modalities: Sequence[str]) -> Nouns:
    """The words for several modalities: `images or texts`."""
    found = [nouns(one) for one in dict.fromkeys(modalities)]
    forms: list[list[Text | str]] = [
        [one.one for one in found], [one.many for one in found], [one.article for one in found]
    ]  # fmt: skip
    one, many, article = (listed(form, last="or") for form in forms)
    return Nouns(one, many, article)
