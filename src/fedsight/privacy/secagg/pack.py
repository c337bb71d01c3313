"""Packing of numbers of up to 64 bits without gaps."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedsight.privacy.secagg.masks import Residues, WideResidues

_GROUPS = 1 << 13  # groups packed at once
Words = TypeVar("Words", Residues, WideResidues)


def size(count: int, bits: int) -> int:
    """Size in bytes of `count` packed numbers of `bits` bits."""
    return (count * bits + 7) // 8


def _shape(bits: int) -> tuple[int, int]:
    """(numbers, bytes) of the smallest group of numbers that fills whole bytes."""
    numbers = 8 // math.gcd(bits, 8)
    return numbers, numbers * bits // 8


def lowest(words: Words, bits: int) -> Words:
    """`words` [d] modulo 2^bits; the same memory if nothing is cut off."""
    if bits == 8 * words.itemsize:
        return words
    return words & words.dtype.type((1 << bits) - 1)


def pack(words: Residues | WideResidues, bits: int) -> bytes:
    """Pack `words` [d], each below 2^bits (1 to 64); the first is in the lowest bits."""
    if bits == 8 * words.itemsize:
        return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
    numbers, length = _shape(bits)
    groups = -(-len(words) // numbers)
    out = np.empty((groups, length), np.uint8)
    for start in range(0, groups, _GROUPS):
        stop = min(groups, start + _GROUPS)
        part = words[start * numbers : stop * numbers]
        if len(part) < (stop - start) * numbers:
            part = np.concatenate(
                [part, np.zeros((stop - start) * numbers - len(part), words.dtype)]
            )
        _pack(part.reshape(-1, numbers), bits, out[start:stop])
    return out.tobytes()[: size(len(words), bits)]


def _pack(rows: Residues | WideResidues, bits: int, out: npt.NDArray[np.uint8]) -> None:
    """Compute a group byte by byte, each from the one to nine numbers that it spans."""
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
    """The `count` numbers of up to 32 bits in `data`, [count]; ValueError for a wrong length."""
    return _unpack(data, count, bits, np.dtype(np.uint32))


def unpack_wide(data: bytes | bytearray | memoryview, count: int, bits: int) -> WideResidues:
    """The `count` numbers of up to 64 bits in `data`, [count]; ValueError for a wrong length."""
    return _unpack(data, count, bits, np.dtype(np.uint64))


def _unpack(
    data: bytes | bytearray | memoryview, count: int, bits: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if len(data) != size(count, bits):
        raise ValueError(f"expected {size(count, bits):,} bytes, not {len(data):,}")
    if bits == 8 * dtype.itemsize:
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    numbers, length = _shape(bits)
    groups = -(-count // numbers)
    raw = np.zeros(groups * length, np.uint8)
    raw[: len(data)] = np.frombuffer(data, np.uint8)
    rows = raw.reshape(groups, length)
    out = np.empty((groups, numbers), dtype)
    for start in range(0, groups, _GROUPS):
        part = rows[start : start + _GROUPS].astype(np.uint64)
        for number in range(numbers):
            low, high = number * bits // 8, (number * bits + bits - 1) // 8
            value = np.zeros(len(part), np.uint64)
            for byte in range(low, high + 1):
                offset = 8 * byte - number * bits
                column = part[:, byte]
                value |= (
                    column << np.uint64(offset) if offset >= 0 else column >> np.uint64(-offset)
                )
            out[start : start + _GROUPS, number] = value & np.uint64((1 << bits) - 1)
    return out.reshape(-1)[:count]
