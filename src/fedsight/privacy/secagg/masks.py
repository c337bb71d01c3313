"""Masks: a 32-byte key becomes as many uniform 32-bit numbers as a vector is long.

AES-256 in counter mode from counter 0 (NIST SP 800-38A); each four bytes are a little-endian
uint32. A key makes one mask only. Expanded and added block by block: a block stays in the cache.
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

Residues = npt.NDArray[np.uint32]

KEY = 32  # bytes
BLOCK = 64 << 10  # bytes
TOGETHER = 256  # masks whose state is kept at once
_SPARE = 15  # bytes that the cipher wants beyond the end
_ZEROS = memoryview(bytes(BLOCK))


def apply(words: Residues, keys: Iterable[tuple[bytes, bool]], counter: bytes = bytes(16)) -> None:
    """Add the mask of each (key, subtract?) to `words` [d] modulo 2^32, or subtract it, in place.

    Block after block, each with all masks: `words` goes through the memory once for `TOGETHER` of
    them.
    """
    left = iter(keys)
    buffer = bytearray(BLOCK + _SPARE)
    mask = np.frombuffer(buffer, "<u4", BLOCK // 4)
    while group := list(itertools.islice(left, TOGETHER)):
        streams = [
            (_stream(key, counter), np.subtract if subtract else np.add) for key, subtract in group
        ]
        for start in range(0, len(words), BLOCK // 4):
            part = words[start : start + BLOCK // 4]
            zeros = _ZEROS[: 4 * len(part)]
            for stream, combine in streams:
                stream.update_into(zeros, buffer)
                combine(part, mask[: len(part)], out=part)


def _stream(key: bytes, counter: bytes) -> CipherContext:
    if len(key) != KEY:  # AES would take a shorter one
        raise ValueError(f"a mask key has {KEY} bytes, not {len(key)}")
    return Cipher(AES(key), CTR(counter)).encryptor()


@dataclass(frozen=True, repr=False)  # no key in any log
class Masker:
    """A site's masks of one round: its own key, and one for each neighbour (key, subtract?)."""

    own: bytes
    pairs: Sequence[tuple[bytes, bool]]

    def mask(self, words: Residues) -> None:
        """Add all of them to `words` [d], in place (Bonawitz et al. 2017, section 4)."""
        apply(words, [(self.own, False), *self.pairs])
