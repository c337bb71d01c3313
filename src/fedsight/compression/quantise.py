"""Stochastic uniform quantisation: a few bits a value, right in the mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
from fedsight.compression.bits import pack, packed_bytes, unpack
from fedsight.compression.stream import Stream

CHUNK = 1 << 16  # values that are quantised at once, which fit a processor's cache
Numbers = npt.NDArray[np.uint8 | np.uint16]


@codecs.add("quantise", paper="Alistarh et al. 2017 (QSGD), section 3.1, with the largest value")
class Quantise(Codec):
    """Each value becomes one of 2^bits levels from -s to s, s being the largest of its block.

    It is rounded up or down at random, so that its mean is the value, as far as float32 can tell.
    """

    bits: int = Field(8, ge=1, le=16)  # of a value
    # values that share a largest one
    block: int = Field(4096, ge=8, le=LARGEST_BLOCK, multiple_of=8)

    @property
    def contracts(self) -> bool:
        """An error of half a level at each of a block's values is less than its largest one."""
        most: int = (1 << self.bits) - 1
        return self.block <= most * most

    def bytes(self, values: int) -> int:
        """The levels, packed, and a float32 for each block."""
        return 4 * -(-values // self.block) + packed_bytes(values, self.bits)

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """Levels and the blocks' largest values."""
        sizes, packed = [], []
        for part in values.split(max(CHUNK // self.block, 1) * self.block):
            size, numbers = self._levels(part, stream)
            sizes.append(as_bytes(size))
            packed.append(numbers)
        numbers = np.concatenate(packed) if packed else np.empty(0, np.uint8)
        return torch.cat([*sizes, torch.from_numpy(pack(numbers, self.bits))]), NOTHING

    def _levels(self, values: Tensor, stream: Stream) -> tuple[Tensor, Numbers]:
        """The largest value of each block, and the levels."""
        blocks, top = self._blocked(values), 2**self.bits - 1
        low, high = torch.aminmax(blocks, dim=1)
        largest = torch.maximum(-low, high)
        rise = top / (2 * largest)
        # A block of zeros, or of values whose reciprocal is infinite, has levels of no meaning.
        rise = torch.where(rise.isfinite(), rise, 0.0)
        level = torch.addcmul((largest * rise)[:, None], blocks, rise[:, None])
        level.add_(stream.uniforms(blocks.numel()).view_as(level)).clamp_(0, top)
        flat = level.view(-1)[: len(values)]
        if self.bits <= 8:
            return largest, flat.to(torch.uint8).numpy()
        return largest, flat.to(torch.int32).numpy().astype(np.uint16)

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """Level q of a block is -s + 2 s q / (2^bits - 1)."""
        head = 4 * -(-values // self.block)
        largest, numbers = as_floats(data[:head]), unpack(data[head:].numpy(), values, self.bits)
        levels = self._blocked(torch.from_numpy(numbers.astype("float32")))
        found = levels.mul_(2 / (2**self.bits - 1)).sub_(1).mul_(largest[:, None])
        return found.view(-1)[:values]

    def _blocked(self, values: Tensor) -> Tensor:
        """In rows [m, block], the last filled up with zeros."""
        missing = -len(values) % self.block
        filled = torch.nn.functional.pad(values, (0, missing)) if missing else values
        return filled.view(-1, self.block)
