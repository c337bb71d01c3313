"""One bit a value: its sign, with one size for all values of a block."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsight.compression.base import (
    LARGEST_BLOCK,
    NOTHING,
    Codec,
    Coded,
    as_bytes,
    as_floats,
    codecs,
)
from fedsight.compression.bits import packed_bytes
from fedsight.compression.stream import Stream


@codecs.add("sign", paper="Karimireddy et al. 2019 (EF-signSGD), Algorithm 1")
class Sign(Codec):
    """Signs, times the mean absolute value of the block.

    What is decoded is not right in the mean: set `codec.up.feedback = true`.
    """

    unbiased: ClassVar[bool] = False

    block: int = Field(4096, ge=8, le=LARGEST_BLOCK, multiple_of=8)  # values that share a size

    def bytes(self, values: int) -> int:
        """A bit for each value and a float32 for each block."""
        return 4 * -(-values // self.block) + packed_bytes(values, 1)

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """The mean absolute values and the signs; zero counts as positive."""
        parts = values.split(self.block) if len(values) else ()
        sizes = torch.tensor([float(part.abs().mean()) for part in parts])
        signs = np.packbits((values >= 0).numpy())
        return torch.cat([as_bytes(sizes), torch.from_numpy(signs)]), NOTHING

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """Signs times sizes."""
        head = 4 * -(-values // self.block)
        bits = np.unpackbits(data[head:].numpy(), count=values)
        found = torch.from_numpy(bits).to(torch.float32).mul_(2).sub_(1)
        sizes = as_floats(data[:head]).repeat_interleave(self.block)[:values]
        return found.mul_(sizes)
