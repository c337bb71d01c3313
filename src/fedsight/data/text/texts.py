"""Texts as rows of word numbers, so that they flow through federations as images do.

A word's number is a hash of it (the hashing trick, Weinberger et al. 2009, arXiv:0902.2206): no
vocabulary has to be agreed on, or would tell a coordinator which words a site has.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Preprocess, Source

PADDING, GAP, FIRST = 0, 1, 2  # no word; a word taken out; the least number of a word
NUMBERS = 1 << 22  # of words; float32 holds every one of them exactly
GAP_SHOWN = "____"
NO_WORDS = "the text has no words"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; numbers are words."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def number(word: str) -> int:
    """A word's number, the same on every machine: FIRST + CRC-32 modulo NUMBERS."""
    return FIRST + zlib.crc32(word.encode()) % NUMBERS


def row(text: Sequence[str | None], length: int) -> list[int]:
    """The numbers of the first `length` words; None is a gap, "" is padding."""
    found = [GAP if word is None else number(word) if word else PADDING for word in text[:length]]
    return found + [PADDING] * (length - len(found))


class Texts(ArrayImages):
    """Texts behind the interface of images: float32 [b, 1, 1, length] of exact word numbers."""

    def __init__(self, rows: Tensor, excerpts: Sequence[str], origins: Sequence[str]) -> None:
        super().__init__(rows[:, None, None], "")
        self.excerpts = tuple(excerpts)
        self.origins = tuple(origins)

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[str | None]], origins: Sequence[str], length: int
    ) -> Texts:
        """Of tokenised texts, each from a file and line, or the like, in `origins`."""
        rows = torch.tensor([row(text, length) for text in texts], dtype=torch.int32)
        shown = ([GAP_SHOWN if word is None else word for word in text[:length]] for text in texts)
        excerpts = [" ".join(filter(None, text)) for text in shown]
        return cls(rows.view(len(texts), length), excerpts, origins)

    def name(self, index: int) -> str:
        """Where the text came from."""
        return self.origins[index]

    def excerpt(self, index: int) -> str:
        """What the network sees of a text, as a person reads it; for the report."""
        return self.excerpts[index]


class TextSource(Source):
    """A source of texts: its "images" have one row, as wide as the longest text that is read."""

    length: int = Field(64, ge=1, le=8192)  # words that are read of a text
    corrupt: Literal["error", "skip"] = "error"  # what to do with a text without a word

    def words(self, text: str) -> list[str | None]:
        """A text's words as the network is to see them; None is a gap. DataError if it cannot."""
        return list(words(text))

    def numbers(self) -> Preprocess:
        """Word numbers are taken as they are. Raises DataError if they should be normalised."""
        if self.mean is not None or self.std is not None:
            raise DataError("texts have no brightness", "leave data.mean and data.std out")
        return Preprocess(1, 1, self.length, mean=(0.0,), std=(1.0,), modality="text")
