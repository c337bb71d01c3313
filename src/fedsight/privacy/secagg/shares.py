"""Shamir's secret sharing of 32-byte secrets, over Python's own integers.

Shamir 1979, "How to share a secret". A secret is the value at 0 of a polynomial of degree t - 1
over the integers modulo a prime; a share is its value elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297  # the smallest above 2^256: every 32-byte secret is below it
SECRET = 32  # bytes of a secret
SHARE = 33  # bytes of a share


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """A share for each holder (a whole number from 0); any `threshold` of them make `secret`.

    ValueError for a secret of another length, a holder named twice or a threshold out of range.
    """
    if len(secret) != SECRET or len(set(holders)) != len(holders) or min(holders, default=0) < 0:
        raise ValueError("a secret of 32 bytes and distinct holders are needed")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"{threshold} of {len(holders)} shares cannot make a secret")
    rest = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    powers = [*reversed(rest), int.from_bytes(secret, "big")]
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in powers:  # Horner's rule
            value = (value * (holder + 1) + coefficient) % PRIME
        shares[holder] = value.to_bytes(SHARE, "big")
    return shares


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that shares (holder -> share) make; ValueError if they do not make one."""
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares, and {threshold} make a secret")
    holders = tuple(sorted(shares)[:threshold])
    values = [int.from_bytes(shares[holder], "big") for holder in holders]
    secret = sum(v * w for v, w in zip(values, _weights(holders), strict=True)) % PRIME
    return secret.to_bytes(SHARE, "big")[1:] if secret < 2**256 else _none()


def _none() -> bytes:
    raise ValueError("the shares make no secret: one of them is wrong")


@lru_cache(maxsize=4096)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients at 0 for these holders: most secrets of a round have the same."""
    weights = []
    for holder in holders:
        top = bottom = 1
        for other in holders:
            if other != holder:
                top = top * (other + 1) % PRIME
                bottom = bottom * (other - holder) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(weights)
