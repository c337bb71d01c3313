"""Half precision: two bytes a value."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsight.compression.base import NOTHING, Codec, Coded, as_bytes, codecs
from fedsight.compression.stream import Stream


class _Half(Codec):
    """Values in a type of two bytes, rounded to the nearest."""

    unbiased: ClassVar[bool] = False
    dtype: ClassVar[torch.dtype]

    @property
    def precise(self) -> bool:
        """A relative error of at most 2^-8."""
        return True

    def bytes(self, values: int) -> int:
        """Two for each value."""
        return 2 * values

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """Round to the nearest value, ties to even."""
        half = values.to(self.dtype)
        if bool(half.isinf().any()):
            most = torch.finfo(self.dtype).max
            raise ValueError(
                f"the largest value, {float(values.abs().max()):.3g}, is above {most:,.0f}"
            )
        return as_bytes(half), NOTHING

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """Exact: every such value is a float32 value."""
        return data.clone().view(self.dtype).to(torch.float32) if values else NOTHING.clone()


@codecs.add("float16", paper="IEEE 754-2019, binary16")
class Float16(_Half):
    """Values are sent as float16: half the bytes, a relative error of at most 2^-11.

    Values below 2^-14 lose precision and those below 2^-25 become zero; one above 65,504 is
    rejected.
    """

    dtype: ClassVar[torch.dtype] = torch.float16


@codecs.add("bfloat16", paper="the upper half of IEEE 754-2019, binary32")
class BFloat16(_Half):
    """Values are sent as bfloat16: half the bytes, float32's range, a relative error up to 2^-8."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
