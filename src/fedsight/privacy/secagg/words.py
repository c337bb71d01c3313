"""What a site sends under secure aggregation: levels modulo 2^32, and integers modulo 2^64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsight.privacy.secagg import pack
from fedsight.privacy.secagg.masks import Masker, Residues, WideResidues
from fedsight.privacy.secagg.quantise import Quantiser


@dataclass(frozen=True)
class Words:
    """Levels [d] of the rounded parts, and the integer parts [k]; or sums of them."""

    levels: Residues
    integers: WideResidues

    def clear(self) -> None:
        """Set all to zero."""
        self.levels.fill(0)
        self.integers.fill(0)

    def add(self, other: Words) -> None:
        """Add other words, in place."""
        np.add(self.levels, other.levels, out=self.levels)
        np.add(self.integers, other.integers, out=self.integers)

    def mask(self, masker: Masker) -> None:
        """Add a site's masks, in place."""
        masker.mask(self.levels, self.integers)


def size(quantiser: Quantiser) -> int:
    """Bytes of packed words."""
    return pack.size(quantiser.length, quantiser.modulus) + quantiser.integers.packed_size


def packed(words: Words, quantiser: Quantiser) -> bytes:
    """The bits of `words` that determine their sum: first the levels, then the integers."""
    levels = pack.lowest(words.levels, quantiser.modulus)
    return pack.pack(levels, quantiser.modulus) + quantiser.integers.pack(words.integers)


def unpacked(data: bytes | bytearray, quantiser: Quantiser) -> Words:
    """The words in `data`; ValueError if its length is wrong."""
    if len(data) != size(quantiser):
        raise ValueError(f"expected {size(quantiser):,} bytes, not {len(data):,}")
    view, end = memoryview(data), pack.size(quantiser.length, quantiser.modulus)
    levels = pack.unpack(view[:end], quantiser.length, quantiser.modulus)
    return Words(levels, quantiser.integers.unpack(view[end:]))
