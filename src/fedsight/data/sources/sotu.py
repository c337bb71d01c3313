"""State of the Union addresses: which word is missing? Each president is a site."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Part, Words, sources
from fedsight.data.fetch.cache import fetched
from fedsight.data.text.texts import GAP_SHOWN, Texts, TextSource, words

NOUNS = (
    *("congress", "country", "government", "law", "peace"),
    *("people", "power", "war", "work", "world"),
)


@dataclass(frozen=True)
class Speech:
    """One address."""

    file: str
    year: int
    president: str
    words: tuple[str, ...]


@sources.add("sotu", licence="public domain", texts="233 addresses of 43 presidents, 1790-2021")
class StateOfTheUnion(TextSource):
    """State of the Union addresses: which of ten nouns is missing? Each president is a site.

    A text is the `length` words around a place where one of `nouns` stood; the noun is its label.
    Addresses are tested as a whole: of each president who gave more than one, `test_fraction` (at
    least one), spread evenly over the years. `fedsight data get sotu` fetches the addresses.
    """

    sample: ClassVar[bool] = True

    length: int = Field(32, ge=2, le=8192)  # words in a text, the gap in the middle among them
    nouns: Words = NOUNS  # the classes
    test_fraction: float = Field(0.25, gt=0, lt=1)  # of each president's addresses

    def needs(self) -> tuple[str, ...]:
        """The addresses."""
        return ("sotu",)

    def words(self, text: str) -> list[str | None]:
        """The words around the first `____`, which takes the place of the missing noun."""
        before, gap, after = text.partition(GAP_SHOWN)
        if not gap:
            cause = f"the text has no gap, {GAP_SHOWN}"
            raise DataError(cause, f"write {GAP_SHOWN} where the noun is missing")
        return self._around(words(before), words(after))

    def open(self) -> Dataset:
        """Read the addresses; DataError names the file that is broken or empty."""
        preprocess = self.numbers()
        speeches, skipped = self._speeches(fetched("sotu"))
        tested = self._tested(speeches)
        parts = []
        for test in (False, True):
            texts, origins, labels, sites = [], [], [], []
            for speech in speeches:
                if (speech.file in tested) != test:
                    continue
                for place, label, text in self._gaps(speech):
                    texts.append(text)
                    labels.append(label)
                    sites.append(speech.president)
                    origins.append(f"{speech.president} {speech.year}, word {place + 1}")
            found = Texts.of(texts, origins, self.length)
            parts.append(Part(found, np.array(labels, dtype=np.int64), sites))
        for label, count in enumerate(np.bincount(parts[0].labels, minlength=len(self.nouns))):
            if not count:
                cause = f"'{self.nouns[label]}' does not occur in any training address"
                raise DataError(cause, "write data.nouns in lower case, or leave this noun out")
        facts = {
            "title": "State of the Union addresses, the missing noun",
            "licence": "public domain",
            "credit": "the presidents of the United States; collected by the Stdlib Authors",
        }
        return Dataset(parts[0], parts[1], tuple(self.nouns), preprocess, skipped, facts)

    def _speeches(self, folder: Path) -> tuple[list[Speech], tuple[str, ...]]:
        found, skipped = [], []
        for path in sorted(folder.glob("*.json")):
            try:
                entry = json.loads(path.read_bytes())
                text = tuple(words(entry["text"]))
                speech = Speech(path.name, int(entry["year"]), str(entry["name"]), text)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                cause = f"'{path}' is not an address: {error!r}"
                raise DataError(
                    cause, "remove its folder, then run: fedsight data get sotu"
                ) from error
            if text:
                found.append(speech)
            elif self.corrupt == "skip":
                skipped.append(str(path))
            else:
                raise DataError(
                    f"'{path}' has no words", 'set data.corrupt = "skip" to leave it out'
                )
        return found, tuple(skipped)

    def _tested(self, speeches: list[Speech]) -> set[str]:
        """The files of the addresses that are tested."""
        of: dict[str, list[Speech]] = {}
        for speech in sorted(speeches, key=lambda one: (one.year, one.file)):
            of.setdefault(speech.president, []).append(speech)
        tested = set()
        for own in of.values():
            count = min(len(own) - 1, max(1, round(self.test_fraction * len(own))))
            steps = (np.arange(count) + 0.5) * len(own) / max(1, count)
            tested |= {own[int(step)].file for step in steps}
        return tested

    def _gaps(self, speech: Speech) -> Iterator[tuple[int, int, list[str | None]]]:
        """(place, class, text with a gap in the middle) for each noun in the address."""
        classes = {noun: label for label, noun in enumerate(self.nouns)}
        for place, word in enumerate(speech.words):
            if word in classes:
                left = speech.words[max(0, place - self.length) : place]
                right = speech.words[place + 1 : place + self.length]
                yield place, classes[word], self._around(left, right)

    def _around(self, left: Sequence[str], right: Sequence[str]) -> list[str | None]:
        """`length` words with a gap in the middle; "" stands for missing words before it."""
        before = self.length // 2
        near = left[max(0, len(left) - before) :]
        padding = [""] * (before - len(near))
        return [*padding, *near, None, *right[: self.length - before - 1]]
