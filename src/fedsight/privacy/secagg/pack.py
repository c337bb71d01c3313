"""Packing of numbers of fewer than 32 bits without gaps."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsight.privacy.secagg.masks import Residues

_GROUPS = 1 << 13  # groups packed at once


def size(count: int, bits: int) -> int:
    """Size in bytes of `count` packed numbers of `bits` bits."""
    return (count * bits + 7) // 8


def _shape(bits: int) -> tuple[int, int]:
    """(numbers, bytes) of the smallest group of numbers that fills whole bytes."""
    numbers = 8 // math.gcd(bits, 8)
    return numbers, numbers * bits // 8


def pack(words: Residues, bits: int) -> bytes:
    """Pack `words` [d], each below 2^bits (1 to 32); the first is in the lowest bits."""
    if bits == 32:
        return words.astype("<u4", copy=False).tobytes()
    numbers, length = _shape(bits)
    groups = -(-len(words) // numbers)
    out = np.empty((groups, length), np.uint8)
    for start in range(0, groups, _GROUPS):
        stop = min(groups, start + _GROUPS)
        part = words[start * numbers : stop * numbers]
        if len(part) < (stop - start) * numbers:
            part = np.concatenate([part, np.zeros((stop - start) * numbers - len(part), np.uint32)])
        _pack(part.reshape(-1, numbers), bits, out[start:stop])
    return out.tobytes()[: size(len(words), bits)]


def _pack(rows: Residues, bits: int, out: npt.NDArray[np.uint8]) -> None:
    """Compute a group byte by byte, each from the one to five numbers that it spans."""
    wide = rows.astype(np.uint64)
    for byte in range(out.shape[1]):
        first, last = 8 * byte // bits, (8 * byte + 7) // bits
        value = np.zeros(len(rows), np.uint64)
        for number in range(first, last + 1):
            offset = number * bits - 8 * byte
            column = wide[:, number]
            value |= column << np.uint64(offset) if offset >= 0 else column >> np.uint64(-offset)
        out[:, byte] = (value & np.uint64(0xFF)).astype(np.uint8)


def unpack(data: bytes | bytearray | memoryview, count: int, bits: int) -> Residues:
    """The `count` numbers in `data`, [count]; ValueError if its length is wrong."""
    if len(data) != size(count, bits):
        raise ValueError(f"expected {size(count, bits):,} bytes, not {len(data):,}")
    if bits == 32:
        return np.frombuffer(data, "<u4").astype(np.uint32)
    numbers, length = _shape(bits)
    groups = -(-count // numbers)
    raw = np.zeros(groups * length, np.uint8)
    raw[: len(data)] = np.frombuffer(data, np.uint8)
    rows = raw.reshape(groups, length)
    out = np.empty((groups, numbers), np.uint32)
    for start in range(0, groups, _GROUPS):
        part = rows[start : start + _GROUPS].astype(np.uint64)
        for number in range(numbers):
            low, high = number * bits // 8, (number * bits + bits - 1) // 8
            value = np.zeros(len(part), np.uint64)
            for byte in range(low, high + 1):
                value |= part[:, byte] << np.uint64(8 * (byte - low))
            value >>= np.uint64(number * bits - 8 * low)
            out[start : start + _GROUPS, number] = value & np.uint64((1 << bits) - 1)
    return out.reshape(-1)[:count]
