"""Both languages of a text on the page; the style sheet shows one of them."""

from __future__ import annotations

from markupsafe import Markup, escape

from fedsight.language.current import LANGUAGES
from fedsight.language.message import Text, text_in
from fedsight.report.words import Words

TAGS = {"en": "en", "zh": "zh-Hans"}  # as HTML's `lang` has them


def in_html(value: object) -> object:
    """A text as one element for each language; other values, and texts that do not differ, as
    they are."""
    return _both(value, "span") if isinstance(value, Text) else value


def in_svg(words: Words) -> Markup:
    """The same within an SVG text."""
    return _both(words, "tspan") if isinstance(words, Text) else escape(words)


def _both(text: Text, tag: str) -> Markup:
    told = {language: text_in(text, language) for language in LANGUAGES}
    if len(set(told.values())) == 1:
        return escape(told["en"])
    return Markup("").join(
        Markup('<{} class="{}" lang="{}">{}</{}>').format(tag, one, TAGS[one], said, tag)
        for one, said in told.items()
    )
