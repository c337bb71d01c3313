"""Whole numbers of few bits, packed; and sorted positions in nearly as few bits as possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
# Words that hold as many numbers of so many bits, a byte each, as a byte does packed.
TOGETHER: dict[int, Any] = {2: np.uint32, 4: np.uint16, 8: np.uint8}


def packed_bytes(values: int, bits: int) -> int:
    """Length of `values` numbers of `bits` bits each, packed."""
    return bits * -(-values // 8)


def pack(values: npt.NDArray[np.uint8 | np.uint16], bits: int) -> Bytes:
    """Numbers below 2^bits [n] -> uint8 [packed_bytes(n, bits)].

    Numbers of 2, 4 or 8 bits stand side by side; of others there is a plane for each bit.
    """
    missing = -len(values) % 8
    if missing:
        values = np.concatenate([values, np.zeros(missing, values.dtype)])
    if bits in TOGETHER:
        word, shift = TOGETHER[bits], 8 - bits
        words = values.astype(np.uint8, copy=False).view(word)
        found = words.copy()
        for number in range(1, 8 // bits):
            found |= words >> word(number * shift)
        packed: Bytes = found.astype(np.uint8)
        return packed
    planes = [np.packbits((values >> bit).astype(np.uint8) & 1) for bit in range(bits)]
    return np.concatenate(planes)


def unpack(data: Bytes, values: int, bits: int) -> npt.NDArray[np.uint16]:
    """The `values` numbers that were packed."""
    if bits in TOGETHER:
        word, shift = TOGETHER[bits], 8 - bits
        words = data.astype(word)
        found = words.copy()
        for number in range(1, 8 // bits):
            found |= words << word(number * shift)
        mask = sum((2**bits - 1) << 8 * number for number in range(8 // bits))
        numbers: Bytes = (found & word(mask)).view(np.uint8)
        return numbers[:values].astype(np.uint16)
    found, length = np.zeros(values, np.uint16), packed_bytes(values, 1)
    for bit in range(bits):
        plane = np.unpackbits(data[bit * length : (bit + 1) * length], count=values)
        found |= plane.astype(np.uint16) << np.uint16(bit)
    return found


def _low_bits(count: int, below: int) -> int:
    return max(below // count, 1).bit_length() - 1 if count else 0


def positions_bytes(count: int, below: int) -> int:
    """Length of `count` sorted positions below `below`."""
    low = _low_bits(count, below)
    return packed_bytes(count, low) + packed_bytes(count + (below >> low), 1) if count else 0


def pack_positions(positions: Positions, below: int) -> Bytes:
    """Sorted, different positions below `below` [k] -> uint8 [positions_bytes(k, below)].

    The low bits are packed as they are; the high bits are counts, in unary (Elias 1974, Fano 1971).
    It takes at most two bits a position more than log2(below / k), and the length does not depend
    on the positions.
    """
    count = len(positions)
    if not count:
        return np.empty(0, np.uint8)
    low = _low_bits(count, below)
    unary = np.zeros(count + (below >> low), np.uint8)
    unary[(positions >> low) + np.arange(count)] = 1
    lows = (positions & ((1 << low) - 1)).astype(np.uint64)
    planes = [np.packbits((lows >> np.uint64(bit)).astype(np.uint8) & 1) for bit in range(low)]
    return np.concatenate([*planes, np.packbits(unary)])


def unpack_positions(data: Bytes, count: int, below: int) -> Positions:
    """The positions that were packed. Raises ValueError for bytes that are not those of `count`
    sorted, different positions below `below`."""
    if not count:
        return np.empty(0, np.int64)
    low, length = _low_bits(count, below), packed_bytes(count, 1)
    places = np.flatnonzero(np.unpackbits(data[low * length :], count=count + (below >> low)))
    if len(places) != count:
        raise ValueError(f"{len(places):,} positions were sent, not {count:,}")
    found = (places - np.arange(count)) << low
    for bit in range(low):
        plane = np.unpackbits(data[bit * length : (bit + 1) * length], count=count)
        found |= plane.astype(np.int64) << bit
    if int(found[-1]) >= below or bool((np.diff(found) <= 0).any()):
        raise ValueError("the positions are not in order, or too large")
    return found
