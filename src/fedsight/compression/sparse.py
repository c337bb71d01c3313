"""Sparse updates: a share of the values, and where they are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsight.compression.base import Codec, Coded, codecs
from fedsight.compression.bits import pack_positions, positions_bytes, unpack_positions
from fedsight.compression.stream import Stream, smallest


class _Share(Codec):
    """Leaves a share of the values, at least one."""

    share: float = Field(0.01, gt=0, le=1)  # of the values that are sent

    def left(self, values: int) -> int:
        """The share, rounded up."""
        return min(values, int(np.ceil(self.share * values)))


@codecs.add("top-k", paper="Stich et al. 2018, Sparsified SGD with memory, definition 2.1")
class TopK(_Share):
    """The values that are largest in size, and their positions; the others are zero.

    What is decoded is not right in the mean: set `codec.up.feedback = true`.
    """

    unbiased: ClassVar[bool] = False

    def bytes(self, values: int) -> int:
        """The positions: log2(1 / share) + 2 bits each, at most."""
        return positions_bytes(self.left(values), values)

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """Among values of equal size the first ones are taken."""
        size = values.abs().neg_().numpy()
        chosen = smallest(size, self.left(len(values)))
        data = torch.from_numpy(pack_positions(chosen, len(values)))
        return data, values[torch.from_numpy(chosen)]

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """The values at their positions."""
        chosen = unpack_positions(data.numpy(), len(left), values)
        found = torch.zeros(values)
        found[torch.from_numpy(chosen)] = left
        return found


@codecs.add("random-k", paper="Konecny et al. 2016, section 3 (random mask)")
class RandomK(_Share):
    """Values at random positions, which follow from the key and are not sent; the others are zero.

    With `scaled`, the values are divided by the share, so that all are right in the mean.
    """

    linear: ClassVar[bool] = True

    scaled: bool = True  # whether values are divided by the share

    @property
    def contracts(self) -> bool:
        """Values that are made larger have an error that may be larger than they were."""
        return not self.scaled or self.share == 1

    def bytes(self, values: int) -> int:
        """None: whoever decodes draws the positions again."""
        return 0

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """The values at the positions that are drawn."""
        chosen = torch.from_numpy(stream.places(self.left(len(values)), len(values)))
        return torch.empty(0, dtype=torch.uint8), values[chosen]

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """The values at the same positions, divided by the share if they are to be.

        Only here, so that what is sent stays within the range in which it is rounded.
        """
        found = torch.zeros(values)
        factor = values / len(left) if self.scaled and len(left) else 1.0
        found[torch.from_numpy(stream.places(len(left), values))] = left * factor
        return found
