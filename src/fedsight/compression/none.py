"""No compression: the values themselves, four bytes each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsight.compression.base import Compression, codecs


@codecs.add("none")
class Uncompressed(Compression):
    """Updates are sent as float32 values."""

    exact: ClassVar[bool] = True

    def bytes(self, values: int) -> int:
        """Four bytes per value."""
        return 4 * values

    def encode(self, values: Tensor) -> Tensor:
        """The same memory, seen as bytes."""
        sent = values.contiguous()
        return sent.view(torch.uint8) if len(sent) else torch.empty(0, dtype=torch.uint8)

    def decode(self, data: Tensor, values: int) -> Tensor:
        """The same memory, seen as values."""
        return data.view(torch.float32)
