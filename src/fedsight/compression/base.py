"""The codec of updates: `[compression]` in the config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from fedsight.core.registry import Registry
from fedsight.core.settings import Settings


class Compression(Settings, ABC):
    """A codec, chosen by name. A new one takes one file in `compression/`.

    It encodes what a site releases, after clipping and the site's own noise, before transfer.
    """

    exact: ClassVar[bool] = False  # whether decoding restores the encoded values exactly

    @abstractmethod
    def bytes(self, values: int) -> int:
        """Length of the encoding of `values` values."""

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """float32 [n] -> uint8 [bytes(n)]. Raises ValueError for values that cannot be encoded."""

    @abstractmethod
    def decode(self, data: Tensor, values: int) -> Tensor:
        """uint8 [bytes(n)] -> float32 [n]."""


codecs: Registry[Compression] = Registry("codec", "fedsight.compression")
