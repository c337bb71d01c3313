"""A small network for texts: the mean of the word vectors, and the words around the middle."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.models.base import Model, models

SPECIAL = 2  # the numbers of padding (0) and of a gap (1); those of words follow


class BagOfWords(nn.Module):
    """[b, 1, 1, length] of word numbers -> [b, features].

    Words share `buckets` vectors; the padding vector stays zero. The mean over a text's words
    is fastText's (Joulin et al. 2017, arXiv:1607.01759); the `near` words on each side of the
    middle also count by position, as in a language model (Bengio et al. 2003).
    """

    def __init__(self, buckets: int, width: int, hidden: int, near: int) -> None:
        super().__init__()
        self.buckets, self.near = buckets, near
        self.vectors = nn.Embedding(buckets, width, padding_idx=0)
        self.all = nn.Linear(width, hidden)
        self.about = nn.Linear(2 * near * width, hidden) if near else None

    def forward(self, x: Tensor) -> Tensor:
        """Features [b, hidden], or [b, 2 * hidden] with near words."""
        numbers = x.flatten(1).to(torch.int64)
        words = SPECIAL + (numbers - SPECIAL) % (self.buckets - SPECIAL)
        folded = torch.where(numbers < SPECIAL, numbers, words)
        vectors: Tensor = self.vectors(folded)  # [b, length, width]
        # sqrt(n), not n: the sum of n random vectors then keeps its scale
        count = (numbers > 0).sum(1, keepdim=True).clamp_min(1)
        found = [self.all(vectors.sum(1) / count.sqrt()).relu()]
        if self.about is not None:
            middle = numbers.shape[1] // 2
            left, right = vectors[:, middle - self.near : middle], vectors[:, middle + 1 :]
            sides = torch.cat([left, right[:, : self.near]], dim=1)
            found.append(self.about(sides.flatten(1)).relu())
        return torch.cat(found, dim=1)


@models.add("text_bag", source="Joulin et al. 2017, arXiv:1607.01759")
class TextBag(Model):
    """For texts: the mean of the word vectors and, with `near`, the words around the middle."""

    buckets: int = Field(8192, ge=SPECIAL + 1)  # word vectors; words share them by their hash
    width: int = Field(32, ge=1)  # numbers in a word vector
    hidden: int = Field(64, ge=1)  # features, of each kind
    near: int = Field(0, ge=0)  # words on each side of the middle that count by position

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes texts of at least 2 * near + 1 words."""
        if (channels, height) != (1, 1):
            cause = f"the network 'text_bag' reads texts, not images of {height} x {width} pixels"
            raise ModelError(
                cause, "choose a source of texts such as 'texts' or 'sotu', or another model"
            )
        if width < 2 * self.near + 1:
            cause = f"texts of {width} words have no {self.near} words on each side of the middle"
            raise ModelError(cause, "lower model.near or raise data.length")
        module = nn.Sequential()
        bag = BagOfWords(self.buckets, self.width, self.hidden, self.near)
        module.add_module("bag", bag)
        module.add_module("head", nn.Linear(self.hidden * (2 if self.near else 1), classes))
        return module, ["head"]
