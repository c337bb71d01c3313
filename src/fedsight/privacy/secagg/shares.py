"""Shamir's secret sharing of 32-byte secrets, with Python integers.

Shamir 1979, "How to share a secret". The secret is the value at 0 of a polynomial of degree t - 1
modulo a prime; a share is the value at another point.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297  # the smallest prime above 2^256, so above every 32-byte secret
SECRET = 32  # bytes of a secret
SHARE = 33  # bytes of a share


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """A share for each holder (numbered from 0); any `threshold` shares reconstruct `secret`.

    Raises ValueError for a secret of another length, a duplicate holder or an invalid threshold.
    """
    if len(secret) != SECRET or len(set(holders)) != len(holders) or min(holders, default=0) < 0:
        raise ValueError("expected a secret of 32 bytes and distinct holders")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"a secret with {len(holders)} shares cannot have threshold {threshold}")
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
    """Reconstruct the secret from shares (holder -> share); ValueError if that fails."""
    if len(shares) < threshold:
        raise ValueError(f"there are {len(shares)} shares, but {threshold} are needed")
    holders = tuple(sorted(shares)[:threshold])
    values = [int.from_bytes(shares[holder], "big") for holder in holders]
    secret = sum(v * w for v, w in zip(values, _weights(holders), strict=True)) % PRIME
    return secret.to_bytes(SHARE, "big")[1:] if secret < 2**256 else _none()


def _none() -> bytes:
    raise ValueError("the shares do not reconstruct a secret: one of them is wrong")


@lru_cache(maxsize=4096)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange coefficients at 0; most secrets of a round have the same holders."""
    weights = []
    for holder in holders:
        top = bottom = 1
        for other in holders:
            if other != holder:
                top = top * (other + 1) % PRIME
                bottom = bottom * (other - holder) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(weights)
