"""A codec from outside the package: one byte a value."""

from __future__ import annotations

import torch
from torch import Tensor

import fedsight as fs
from fedsight.compression.base import NOTHING, Coded, as_bytes
from fedsight.compression.stream import Stream


@fs.register("bytes", paper="a test")
class Bytes(fs.Codec):
    """Values rounded to 255 levels of the largest, whose float32 comes first."""

    def bytes(self, values: int) -> int:
        return 4 + values

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        peak = values.abs().max().clamp(min=1e-12).reshape(1)
        levels = (values / peak * 127).round().to(torch.int8)
        return torch.cat([as_bytes(peak), levels.view(torch.uint8)]), NOTHING

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        peak = data[:4].clone().view(torch.float32)
        return data[4:].view(torch.int8).to(torch.float32) * peak / 127
