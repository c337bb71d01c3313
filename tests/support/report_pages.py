"""What a page shows in one of its languages: tags, and the text that can be seen."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from fedsight.report.page import build

VOID = ("meta", "link", "img", "br", "input")


class Page(HTMLParser):
    """Every tag with its attributes, and the text in one language."""

    def __init__(self, text: str, language: str = "en") -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, bool]] = []  # tags, and whether they are seen
        self.words: list[str] = []
        self.hidden = "zh" if language == "en" else "en"
        self.feed(text)
        shown = re.sub(r"\s+", " ", "".join(self.words))
        self.text = shown.replace("\u00a0", " ")
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag in VOID:
            return
        seen = not self.open or self.open[-1][1]
        self.open.append((tag, seen and given.get("class") != self.hidden and tag != "style"))
        if given.get("class") not in ("en", "zh") and tag not in ("b", "strong", "code", "a", "i"):
            self.words.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1][1]:
            self.words.append(data)


def page(*folders: Path, language: str = "en") -> Page:
    """The report of these runs as it is seen in a language."""
    return Page(build(list(folders)).read_text(encoding="utf-8"), language)
