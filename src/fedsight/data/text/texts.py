"""Texts as rows of word numbers, so that they flow through federations as images do.

A word's number is its hash (the hashing trick, Weinberger et al. 2009, arXiv:0902.2206). So sites
need not agree on a vocabulary, which would reveal their words to the coordinator.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Indices, Preprocess, Source
from fedsight.data.duplicates.prints import Prints

PADDING, GAP, FIRST = 0, 1, 2  # no word; a removed word; the smallest number of a word
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
    """Texts with the interface of images: float32 [b, 1, 1, length] of exact word numbers."""

    prints: Prints | None = None

    def __init__(self, rows: Tensor, excerpts: Sequence[str], origins: Sequence[str]) -> None:
        super().__init__(rows[:, None, None], "")
        self.excerpts = tuple(excerpts)
        self.origins = tuple(origins)

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[str | None]], origins: Sequence[str], length: int
    ) -> Texts:
        """From tokenised texts; `origins` says where each comes from, such as a file and line."""
        rows = torch.tensor([row(text, length) for text in texts], dtype=torch.int32)
        shown = ([GAP_SHOWN if word is None else word for word in text[:length]] for text in texts)
        excerpts = [" ".join(filter(None, text)) for text in shown]
        found = cls(rows.view(len(texts), length), excerpts, origins)
        # Of all words, not of those that the network sees: a program decides how many these are.
        whole = (json.dumps(list(text)).encode() for text in texts)
        digests = [hashlib.blake2b(text, digest_size=16).digest() for text in whole]
        found.prints = Prints(digests, np.zeros(len(digests), dtype=bool))
        return found

    def name(self, index: int) -> str:
        """Where the text came from."""
        return self.origins[index]

    def only(self, indices: Indices) -> Texts:
        """The same with some texts left out."""
        chosen = indices.tolist()
        rows = self.pixels[chosen, 0, 0]
        return Texts(rows, [self.excerpts[i] for i in chosen], [self.origins[i] for i in chosen])

    def excerpt(self, index: int) -> str:
        """The part of a text that the network sees, in words; for the report."""
        return self.excerpts[index]


class TextSource(Source):
    """A source of texts: an "image" is one row with a word number per column."""

    length: int = Field(64, ge=1, le=8192)  # words that are read of a text
    corrupt: Literal["error", "skip"] = "error"  # what to do with a text without a word

    def words(self, text: str) -> list[str | None]:
        """A text's words as the network will see them; None is a gap. May raise DataError."""
        return list(words(text))

    def numbers(self) -> Preprocess:
        """Preprocessing that leaves word numbers alone; DataError if mean or std is set."""
        if self.mean is not None or self.std is not None:
            raise DataError("texts have no brightness", "leave data.mean and data.std out")
        return Preprocess(1, 1, self.length, mean=(0.0,), std=(1.0,), modality="text")
