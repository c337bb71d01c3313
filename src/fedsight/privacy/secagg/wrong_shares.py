"""Reconstructs a secret although some of its shares are wrong, and says which.

The shares of a secret are a Reed-Solomon code word: values of a polynomial of degree below t at
known places. Gao's decoder (Gao 2003, "A new algorithm for decoding Reed-Solomon codes", algorithm
1) finds it beside at most (n - t) / 2 wrong values of n. Whether a secret is the right one is known
besides, because it was committed to. So where n - t is odd, one share is left out in turn, and one
wrong share more is borne: a single one is found as soon as there is one share more than needed.

Polynomials are lists of coefficients modulo `PRIME`, the constant first, without leading zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fedsight.privacy.secagg.shares import PRIME, SHARE

Polynomial = list[int]


def recover(
    shares: Mapping[int, bytes], threshold: int, is_secret: Callable[[bytes], bool]
) -> tuple[bytes, set[int]] | None:
    """The secret that `is_secret` accepts, and the holders whose shares are not of it.

    None if too many shares are wrong, or if the secret was never dealt.
    """
    values = {holder: int.from_bytes(share, "big") for holder, share in shares.items()}
    for points in _choices(values, threshold):
        found = _decoded(points, threshold)
        if found is None:
            continue
        secret = _at(found, 0).to_bytes(SHARE, "big")
        if not secret[0] and is_secret(secret[1:]):
            return secret[1:], {one for one in values if _at(found, one + 1) != values[one]}
    return None


def _choices(values: Mapping[int, int], threshold: int) -> Iterator[dict[int, int]]:
    """All points (place -> value); then, if that bears one more, all but each one."""
    points = {holder + 1: value % PRIME for holder, value in values.items()}
    yield points
    if (len(points) - threshold) % 2:
        for place in points:
            yield {other: value for other, value in points.items() if other != place}


def _decoded(points: Mapping[int, int], threshold: int) -> Polynomial | None:
    """The polynomial of degree below `threshold` through all but (n - t) / 2 of n points."""
    whole = _product(list(points))
    before, now = whole, _interpolated(points, whole)
    last, factor = [], [1]  # of the interpolation, in `before` and in `now`
    while 2 * (len(now) - 1) >= len(points) + threshold:
        quotient, rest = _divided(before, now)
        before, now = now, rest
        last, factor = factor, _minus(last, _times(quotient, factor))
    found, rest = _divided(now, factor)
    return found if not rest and len(found) <= threshold else None


def _interpolated(points: Mapping[int, int], whole: Polynomial) -> Polynomial:
    """The polynomial through all points; `whole` is the product of (x - place)."""
    total = [0] * len(points)
    for place, value in points.items():
        others = _without(whole, place)
        scale = value * pow(_at(others, place), -1, PRIME) % PRIME
        total = [(a + scale * b) % PRIME for a, b in zip(total, others, strict=True)]
    return _trimmed(total)


def _product(places: Sequence[int]) -> Polynomial:
    found = [1]
    for place in places:
        found = [(a - place * b) % PRIME for a, b in zip([0, *found], [*found, 0], strict=True)]
    return found


def _without(whole: Polynomial, place: int) -> Polynomial:
    """`whole` divided by (x - place), one of its factors (Horner's rule)."""
    found = [whole[-1]]
    for coefficient in whole[-2:0:-1]:
        found.append((coefficient + place * found[-1]) % PRIME)
    return found[::-1]


def _divided(top: Polynomial, bottom: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and rest."""
    rest, inverse = list(top), pow(bottom[-1], -1, PRIME)
    quotient = [0] * max(0, len(top) - len(bottom) + 1)
    for place in range(len(quotient) - 1, -1, -1):
        scale = quotient[place] = rest[place + len(bottom) - 1] * inverse % PRIME
        for at, coefficient in enumerate(bottom, place):
            rest[at] = (rest[at] - scale * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    found = [0] * max(0, len(one) + len(other) - 1)
    for at, a in enumerate(one):
        for place, b in enumerate(other, at):
            found[place] = (found[place] + a * b) % PRIME
    return found


def _minus(one: Polynomial, other: Polynomial) -> Polynomial:
    size = max(len(one), len(other))
    wide = [[*part, *[0] * (size - len(part))] for part in (one, other)]
    return _trimmed([(a - b) % PRIME for a, b in zip(*wide, strict=True)])


def _trimmed(values: Polynomial) -> Polynomial:
    while values and not values[-1]:
        values.pop()
    return values


def _at(polynomial: Polynomial, x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value
