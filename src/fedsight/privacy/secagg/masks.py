"""Masks: a 32-byte key becomes as many uniform 32-bit numbers as a vector is long.

AES-256 in counter mode from counter 0 (NIST SP 800-38A); each four bytes are a little-endian
uint32. A key makes one mask only. Expanded and added block by block: a block stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Words = npt.NDArray[np.uint32]

KEY = 32  # bytes
BLOCK = 64 << 10  # bytes
_SPARE = 15  # bytes that the cipher wants beyond the end
_ZEROS = memoryview(bytes(BLOCK))


def apply(words: Words, key: bytes, subtract: bool = False, counter: bytes = bytes(16)) -> None:
    """Add the mask of `key` to `words` [d] modulo 2^32, or subtract it, in place."""
    if len(key) != KEY:  # AES would take a shorter one
        raise ValueError(f"a mask key has {KEY} bytes, not {len(key)}")
    cipher = Cipher(AES(key), CTR(counter)).encryptor()
    buffer = bytearray(BLOCK + _SPARE)
    mask = np.frombuffer(buffer, "<u4", BLOCK // 4)
    combine = np.subtract if subtract else np.add
    for start in range(0, len(words), BLOCK // 4):
        part = words[start : start + BLOCK // 4]
        cipher.update_into(_ZEROS[: 4 * len(part)], buffer)
        combine(part, mask[: len(part)], out=part)


@dataclass(frozen=True, repr=False)  # no key in any log
class Masker:
    """A site's masks of one round: its own key, and one for each neighbour (key, subtract?)."""

    own: bytes
    pairs: Sequence[tuple[bytes, bool]]

    def mask(self, words: Words) -> None:
        """Add all of them to `words` [d], in place (Bonawitz et al. 2017, section 4)."""
        apply(words, self.own)
        for key, subtract in self.pairs:
            apply(words, key, subtract)
