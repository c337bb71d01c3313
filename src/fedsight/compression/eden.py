"""Quantisation after a random rotation, which makes blocks of many values alike."""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import Tensor

from fedsight.compression import hadamard
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

CELLS, REACH, NEAR = 1024, 6.0, 1e-5  # of `nearest`: how many cells, from -REACH to REACH
TINY = 1e-30  # below it a block counts as zero, because reciprocals would be infinite


class _Rotation(Codec):
    """Rotates blocks of a power of two."""

    # values that are rotated together: a power of two
    block: int = Field(4096, ge=64, le=LARGEST_BLOCK)

    @field_validator("block")
    @classmethod
    def _is_power(cls, block: int) -> int:
        if block & (block - 1):
            raise ValueError("expected a power of two")
        return block


@codecs.add("rotate", paper="Suresh et al. 2017, Distributed mean estimation, section 3")
class Rotate(_Rotation):
    """A random rotation, after which all values are of much the same size; a step before others."""

    linear: ClassVar[bool] = True

    def bytes(self, values: int) -> int:
        """None: whoever decodes draws the rotation again."""
        return 0

    def left(self, values: int) -> int:
        """Filled up to whole blocks."""
        return hadamard.padded(values, self.block)

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """The rotated values."""
        return torch.empty(0, dtype=torch.uint8), hadamard.rotate(values, self.block, stream)

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """Rotated back."""
        return hadamard.rotate_back(left, values, self.block, stream)


@codecs.add("eden", paper="Vargaftik et al. 2022 (EDEN), Algorithm 1; with one bit 2021 (DRIVE)")
class Eden(_Rotation):
    """A random rotation, then the levels that are best for normal values.

    The scale of a block makes what is decoded right in the mean, or its error least. The relative
    squared error is 0.571 for one bit and 0.133, 0.036 and 0.010 for two, three and four, or
    0.363, 0.117, 0.035 and 0.009 with the least error, for blocks with many values.
    """

    bits: int = Field(1, ge=1, le=6)  # of a value
    # of a block: unbiased: right in the mean; least: with the least squared error
    scale: Literal["unbiased", "least"] = "unbiased"

    def bytes(self, values: int) -> int:
        """The levels, packed, and a float32 for each block."""
        blocks = -(-values // self.block)
        return 4 * blocks + packed_bytes(hadamard.padded(values, self.block), self.bits)

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """Levels of the rotated values, in units of their root mean square, and the scales."""
        rotated = hadamard.rotate(values, self.block, stream)
        found = [self._levels(part) for part in self._rows(rotated)]
        scales, numbers = ([one[place] for one in found] for place in (0, 1))
        data = pack(_joined(numbers).to(torch.uint8).numpy(), self.bits)
        return torch.cat([as_bytes(_joined(scales)), torch.from_numpy(data)]), NOTHING

    def _levels(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of each row, and the numbers of its levels."""
        square = part.square().sum(1, keepdim=True)
        if not bool(square.isfinite().all()):
            most = float(part.abs().max())
            raise ValueError(f"the squares of its values, up to {most:.3g}, are too large for it")
        if self.bits == 1:
            number = part >= 0
            inner = part.abs().sum(1, keepdim=True).mul_(float(centroids(1)[1]))
            length = torch.full_like(inner, part.shape[1] * float(centroids(1)[1]) ** 2)
        else:
            unit = (part.shape[1] / square.clamp(min=TINY)).sqrt_()
            number = nearest(part * unit, self.bits)
            level = centroids(self.bits).index_select(0, number.view(-1)).view_as(part)
            inner = (part * level).sum(1, keepdim=True)
            length = level.square().sum(1, keepdim=True)
        least = self.scale == "least"
        scale = inner / length if least else square / inner.clamp(min=TINY)
        return torch.where(square > TINY, scale, 0.0).view(-1), number.view(-1)

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """Levels times scales, rotated back."""
        head, length = 4 * -(-values // self.block), hadamard.padded(values, self.block)
        scales = as_floats(data[:head])
        numbers = unpack(data[head:].numpy(), length, self.bits)
        levels = centroids(self.bits).index_select(0, torch.from_numpy(numbers.astype(np.int32)))
        at = 0
        for part in self._rows(levels):
            part.mul_(scales[at : at + len(part), None])
            at += len(part)
        return hadamard.rotate_back(levels, values, self.block, stream)

    def _rows(self, rotated: Tensor) -> list[Tensor]:
        """The whole blocks [m, block], and the last, shorter one [1, n], where there are such."""
        whole = len(rotated) // self.block * self.block
        most = max(hadamard.CHUNK // self.block, 1)
        rows = list(rotated[:whole].view(-1, self.block).split(most)) if whole else []
        return [*rows, rotated[None, whole:]] if whole < len(rotated) else rows


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else NOTHING


@cache
def centroids(bits: int) -> Tensor:
    """The 2^bits levels with the least squared error for a standard normal value (Lloyd 1982, Max
    1960), ascending, float32."""
    return torch.from_numpy(_levels(bits).astype(np.float32))


@cache
def edges(bits: int) -> Tensor:
    """The values between them at which the next level is nearer, float32 [2^bits - 1]."""
    levels = _levels(bits)
    return torch.from_numpy(((levels[1:] + levels[:-1]) / 2).astype(np.float32))


def nearest(values: Tensor, bits: int) -> Tensor:
    """The number of the level that is nearest to each value, int32, in its shape.

    It is `torch.bucketize` of `edges`, three times as fast: a table of cells tells the level to
    within one, because no cell has two edges.
    """
    first, edge = _cells(bits)
    cell = (values * (CELLS / (2 * REACH))).add_(CELLS / 2).clamp_(0, CELLS - 1).to(torch.int32)
    flat = cell.view(-1)
    beyond = values.reshape(-1) > edge.index_select(0, flat)
    return first.index_select(0, flat).add_(beyond).view_as(values)


@cache
def _cells(bits: int) -> tuple[Tensor, Tensor]:
    """The number of edges before each cell, and the edge in it, or infinity.

    An edge is also taken for one of the cell after it if it is so near to the border that rounding
    may put a value into either.
    """
    borders = (torch.arange(CELLS + 1, dtype=torch.float64) * (2 * REACH / CELLS) - REACH).float()
    known = edges(bits)
    before = torch.bucketize(borders[:-1] - NEAR, known).to(torch.int32)
    after = torch.bucketize(borders[1:] + NEAR, known)
    inside = torch.where(after > before, known[before.clamp(max=len(known) - 1).long()], math.inf)
    return before, inside


@cache
def _levels(bits: int) -> npt.NDArray[np.float64]:
    """Lloyd's iteration on the positive half, from the levels that are best for many bits (Panter
    and Dite 1951: quantiles of a normal law of variance 3)."""
    count = 2 ** (bits - 1)
    quantiles = torch.from_numpy((np.arange(count) + 0.5) / count)
    levels = math.sqrt(6) * torch.erfinv(quantiles)
    for _ in range(50_000):
        borders = torch.cat([levels.new_zeros(1), (levels[1:] + levels[:-1]) / 2])
        density = torch.cat([torch.exp(-borders.square() / 2), levels.new_zeros(1)])
        beyond = torch.cat([torch.erfc(borders / math.sqrt(2)), levels.new_zeros(1)])
        after = math.sqrt(2 / math.pi) * density.diff() / beyond.diff()
        moved, levels = float((after - levels).abs().max()), after
        if moved < 1e-9:
            break
    return torch.cat([-levels.flip(0), levels]).numpy()
