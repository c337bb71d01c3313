"""Masks: a 32-byte key is expanded to as many uniform numbers as a vector has values.

AES-256 in counter mode (NIST SP 800-38A). Levels of quantised values are masked modulo 2^32: every
four bytes of the stream from counter 0 are a little-endian uint32. Integers are masked modulo 2^64:
every eight bytes of the stream from counter 2^127 are a little-endian uint64. So the two masks of a
key have no block in common, and a key is used for one of each only. Masks are expanded and added
block by block, so that a block stays in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Residues = npt.NDArray[np.uint32]  # modulo 2^32
WideResidues = npt.NDArray[np.uint64]  # modulo 2^64

KEY = 32  # bytes
BLOCK = 64 << 10  # bytes
TOGETHER = 256  # masks processed at once
_SPARE = 15  # bytes that the cipher needs beyond the end
_ZEROS = memoryview(bytes(BLOCK))
_NARROW, _WIDE = bytes(16), b"\x80" + bytes(15)  # the first counters of the two streams


def apply(
    words: Residues | WideResidues,
    keys: Iterable[tuple[bytes, bool]],
    counter: bytes | None = None,
) -> None:
    """Add the mask of each (key, subtract?) to `words` [d], or subtract it, in place.

    The type of `words` determines the modulus, and the first `counter` if none is given. All masks
    are applied to one block before the next, so `words` passes through memory once per `TOGETHER`
    masks.
    """
    left = iter(keys)
    width = words.itemsize
    first = counter or (_WIDE if words.dtype == np.uint64 else _NARROW)
    buffer = bytearray(BLOCK + _SPARE)
    mask = np.frombuffer(buffer, f"<u{width}", BLOCK // width)
    while group := list(itertools.islice(left, TOGETHER)):
        streams = [
            (_stream(key, first), np.subtract if subtract else np.add) for key, subtract in group
        ]
        for start in range(0, len(words), BLOCK // width):
            part = words[start : start + BLOCK // width]
            zeros = _ZEROS[: width * len(part)]
            for stream, combine in streams:
                stream.update_into(zeros, buffer)
                combine(part, mask[: len(part)], out=part)


def _stream(key: bytes, counter: bytes) -> CipherContext:
    if len(key) != KEY:  # AES would accept a shorter key
        raise ValueError(f"a mask key has {KEY} bytes, not {len(key)}")
    return Cipher(AES(key), CTR(counter)).encryptor()


@dataclass(frozen=True, repr=False)  # keys must not appear in logs
class Masker:
    """A site's masks in one round: its own key, and (key, subtract?) for each neighbour."""

    own: bytes
    pairs: Sequence[tuple[bytes, bool]]

    def mask(self, levels: Residues, integers: WideResidues | None = None) -> None:
        """Add all masks to a site's levels [d] and integers [k], in place.

        Source: Bonawitz et al. 2017, section 4.
        """
        keys = [(self.own, False), *self.pairs]
        apply(levels, keys)
        if integers is not None and len(integers):
            apply(integers, keys)
