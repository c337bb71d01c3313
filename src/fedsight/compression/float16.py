"""Half precision: two bytes a value."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsight.compression.base import Compression, codecs


@codecs.add("float16", paper="IEEE 754-2019, binary16")
class Float16(Compression):
    """Updates are sent as float16: half the bytes, a relative error of at most 2^-11.

    Values below 2^-14 lose precision and those below 2^-25 become zero; one above 65,504 is
    rejected.
    """

    def bytes(self, values: int) -> int:
        """Two bytes per value."""
        return 2 * values

    def encode(self, values: Tensor) -> Tensor:
        """Round to the nearest value, ties to even."""
        half = values.to(torch.float16).contiguous()
        if bool((half.isinf() & values.isfinite()).any()):
            raise ValueError(f"the largest value, {float(values.abs().max()):.3g}, is above 65,504")
        return half.view(torch.uint8) if len(half) else torch.empty(0, dtype=torch.uint8)

    def decode(self, data: Tensor, values: int) -> Tensor:
        """Exact: every float16 value is a float32 value."""
        return data.view(torch.float16).to(torch.float32)
