"""A codec: it makes bytes of a vector, or fewer values and some bytes; several make a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedsight.compression.stream import Stream
from fedsight.core.layout import Layout
from fedsight.core.registry import Registry
from fedsight.core.settings import Settings

LARGEST_BLOCK = 1 << 16  # values that are encoded together: a part of one is filled up with zeros
Coded = tuple[Tensor, Tensor]  # bytes, uint8 [bytes(n)], and the values that are left [left(n)]


class Codec(Settings, ABC):
    """A codec, chosen by name: a step of `codec.up.steps` or
    `codec.down.steps`. A new one takes one file here.

    How many bytes it writes and how many values it leaves depend on the number of values alone, so
    the length of a message tells nothing about them, unless a `Packer` shortens it. Encoding and
    decoding get streams of the same random bits, which follow from a key that is in the message.
    """

    # whether the values that are decoded are the encoded ones in the mean over keys
    unbiased: ClassVar[bool] = True
    # whether it writes no bytes, and leaves values that are linear in the given ones: with equal
    # keys, what is left of a sum is then the sum of what is left, so that masks can hide the terms
    linear: ClassVar[bool] = False
    # whether it encodes tensors, so that it is the first step, which is told of them (`fitted`);
    # what it leaves of each are factors, which it multiplies again
    shaped: ClassVar[bool] = False
    # whether it begins from what it left of the sender's last vector (`following`)
    warm: ClassVar[bool] = False

    @property
    def contracts(self) -> bool:
        """Whether the error is smaller than the vector, so that what is left out dies away when it
        is sent later (Karimireddy et al. 2019, assumption A)."""
        return True

    @property
    def precise(self) -> bool:
        """Whether its squared error is at most a tenth of the squared norm, so that the error of a
        product of what is decoded is smaller than the product."""
        return False

    def fitted(self, layout: Layout) -> Self:
        """The same for a vector of `layout`, which may end before the layout does."""
        return self

    def following(self, left: Tensor) -> Self:
        """The same for a vector after one of which it left this, float32, as it was decoded."""
        return self

    @abstractmethod
    def bytes(self, values: int) -> int:
        """Number of bytes that it writes for so many values."""

    def left(self, values: int) -> int:
        """Number of values that it leaves for the next step."""
        return 0

    @abstractmethod
    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """float32 [n] -> its bytes and the values that are left.

        The values are finite. Raises ValueError for those that cannot be encoded.
        """

    @abstractmethod
    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """Bytes and values that are left -> float32 [n]; the bytes may be any of their length."""


class Packer(Codec):
    """The last step, which shortens the bytes that those before it have made, and loses nothing.

    By how much depends on the values, so it goes only where the length of a message may tell
    something of them.
    """

    @property
    def precise(self) -> bool:
        """It loses nothing."""
        return True

    def bytes(self, values: int) -> int:
        """None of its own."""
        return 0

    def left(self, values: int) -> int:
        """All of them."""
        return values

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """The values as they are."""
        return torch.empty(0, dtype=torch.uint8), values

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """The values as they are."""
        return left

    @abstractmethod
    def pack(self, data: Tensor) -> Tensor:
        """Bytes, uint8 [n] -> the same in fewer bytes, or in more if they cannot be shortened."""

    @abstractmethod
    def unpack(self, packed: Tensor, length: int) -> Tensor:
        """Any bytes -> uint8 [length], in memory of their own. It allocates no more than that.

        Raises ValueError unless they are so many bytes, packed.
        """


codecs: Registry[Codec] = Registry("codec", "fedsight.compression")

NOTHING = torch.empty(0)


def as_bytes(values: Tensor) -> Tensor:
    """The memory of `values`, uint8 [n]."""
    flat = values.contiguous()
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


def as_floats(data: Tensor) -> Tensor:
    """Bytes as float32 [n / 4], in memory of their own, which is aligned."""
    return data.clone().view(torch.float32) if len(data) else NOTHING.clone()
