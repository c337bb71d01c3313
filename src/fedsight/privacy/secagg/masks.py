"""Masks: a 32-byte key is expanded to as many uniform 32-bit numbers as a vector has values.

AES-256 in counter mode from counter 0 (NIST SP 800-38A); every four bytes are a little-endian
uint32. A key is used for one mask only. Masks are expanded and added block by block, so that a
block stays in the cache.
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
TOGETHER = 256  # masks processed at once
_SPARE = 15  # bytes that the cipher needs beyond the end
_ZEROS = memoryview(bytes(BLOCK))


def apply(words: Residues, keys: Iterable[tuple[bytes, bool]], counter: bytes = bytes(16)) -> None:
    """Add the mask of each (key, subtract?) to `words` [d] modulo 2^32, or subtract it, in place.

    All masks are applied to one block before the next, so `words` passes through memory once per
    `TOGETHER` masks.
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
    if len(key) != KEY:  # AES would accept a shorter key
        raise ValueError(f"a mask key has {KEY} bytes, not {len(key)}")
    return Cipher(AES(key), CTR(counter)).encryptor()


@dataclass(frozen=True, repr=False)  # keys must not appear in logs
class Masker:
    """A site's masks in one round: its own key, and (key, subtract?) for each neighbour."""

    own: bytes
    pairs: Sequence[tuple[bytes, bool]]

    def mask(self, words: Residues) -> None:
        """Add all masks to `words` [d], in place (Bonawitz et al. 2017, section 4)."""
        apply(words, [(self.own, False), *self.pairs])
