"""Random bits that whoever encodes and whoever decodes draw alike, from the key of a message."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.rng import derive

KEY_BYTES = 8


class Stream:
    """Random bits for one step of a message; equal keys and places give equal bits.

    They are those of PCG64, which NumPy promises never to change (NEP 19).
    """

    def __init__(self, key: int, place: int) -> None:
        self._bits = np.random.PCG64(derive(key, "codec", place))

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """So many random bytes [count]."""
        words = np.asarray(self._bits.random_raw(-(-count // 8)), dtype="<u8")
        return words.view(np.uint8)[:count]

    def signs(self, count: int) -> Tensor:
        """1 or -1, float32 [count]."""
        bits = np.unpackbits(self.bytes(-(-count // 8)), count=count)
        return torch.from_numpy(bits).to(torch.float32).mul_(2).sub_(1)

    def uniforms(self, count: int) -> Tensor:
        """Odd multiples of 2^-17 in (0, 1), float32 [count]: their mean is exactly a half."""
        halves = self.bytes(2 * count).view("<u2")
        return torch.from_numpy(halves.astype(np.float32)).add_(0.5).mul_(2.0**-16)

    def places(self, count: int, values: int) -> npt.NDArray[np.int64]:
        """`count` different numbers below `values`, in order: all sets are equally likely, apart
        from those of equal 32-bit draws."""
        draws = self.bytes(4 * values).view("<u4")
        return smallest(draws, count)


def smallest(values: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.int64]:
    """The places of the `count` smallest values, in order; among equal ones the first."""
    if count >= len(values):
        return np.arange(len(values))
    edge = np.partition(values, count - 1)[count - 1]
    below = np.flatnonzero(values < edge)
    equal = np.flatnonzero(values == edge)[: count - len(below)]
    return np.sort(np.concatenate([below, equal]))
