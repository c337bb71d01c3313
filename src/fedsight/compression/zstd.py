"""Zstandard: entropy coding of what the other steps have made."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsight.compression.base import Packer, codecs


@codecs.add("zstd", paper="Collet and Kucherawy 2021, RFC 8878")
class Zstd(Packer):
    """Entropy coding of what the other steps have made, without loss; the last step.

    Bytes become fewer where some are more frequent than others, as those of `quantise` with eight
    bits are; those of `eden` and `sign` hardly do. The length of a message then depends on the
    values. `fedsight check` refuses it where updates are protected by anything but noise that the
    site adds before.
    """

    level: int = Field(3, ge=1, le=19)  # a higher one takes longer, and fewer bytes

    def pack(self, data: Tensor) -> Tensor:
        """A frame that states the length of its content."""
        packed = _zstd().compress(data.contiguous().numpy().data, self.level)
        return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())

    def unpack(self, packed: Tensor, length: int) -> Tensor:
        """The content of one frame."""
        zstd = _zstd()
        reader = zstd.ZstdDecompressor()
        try:
            found = reader.decompress(packed.contiguous().numpy().data, max_length=length)
        except zstd.ZstdError as error:
            raise ValueError(f"it cannot be unpacked: {error}") from None
        if len(found) != length or not reader.eof or reader.unused_data:
            raise ValueError(f"it unpacks to other than {length:,} bytes")
        return torch.from_numpy(np.frombuffer(found, np.uint8).copy())


def _zstd() -> Any:
    """The standard library's module, or the same for Python before 3.14."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        import backports.zstd as zstd
    return zstd
