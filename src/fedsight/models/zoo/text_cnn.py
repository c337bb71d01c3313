"""A small network for texts: word vectors, and patterns of neighbouring words."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.models.base import Model, models


class Words(nn.Module):
    """[b, 1, 1, length] of word numbers -> word vectors [b, width, length].

    Numbers share `buckets` vectors (numbers 0 and 1, padding and gap, have their own); padding's
    is zero.
    """

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.Embedding(buckets, width, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        """Word vectors [b, width, length]."""
        numbers = x.flatten(1).to(torch.int64)
        folded = torch.where(numbers < 2, numbers, 2 + (numbers - 2) % (self.buckets - 2))
        vectors: Tensor = self.table(folded)
        return vectors.transpose(1, 2)


class Patterns(nn.Module):
    """[b, width, length] -> [b, 3 * filters]: how strongly each pattern of 1, 2 and 3 neighbouring
    words is found anywhere (Kim 2014, arXiv:1408.5882)."""

    def __init__(self, width: int, filters: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Conv1d(width, filters, reach, padding=reach // 2) for reach in (1, 3, 5)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """The strongest answer of each filter [b, 3 * filters]."""
        return torch.cat([part(vectors).relu().amax(2) for part in self.parts], dim=1)


@models.add("text_cnn")
class TextCNN(Model):
    """Word vectors, convolutions over 1, 3 and 5 words, the strongest answer of each, one layer."""

    buckets: int = Field(8192, ge=4)  # word vectors; words share them by their hash
    width: int = Field(32, ge=1)  # numbers in a word vector
    filters: int = Field(64, ge=1)  # patterns of each reach
    dropout: float = Field(0.0, ge=0, lt=1)  # before the last layer

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Texts of any length."""
        if (channels, height) != (1, 1):
            cause = f"the network 'text_cnn' reads texts, not images of {height} x {width} pixels"
            raise ModelError(cause, "choose a source of texts (texts, sotu), or another model")
        module = nn.Sequential()
        module.add_module("words", Words(self.buckets, self.width))
        module.add_module("patterns", Patterns(self.width, self.filters))
        module.add_module("dropout", nn.Dropout(self.dropout))
        module.add_module("head", nn.Linear(3 * self.filters, classes))
        return module, ["head"]
