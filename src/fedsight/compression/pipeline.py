"""Codecs one after the other, in a message with a checksum."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsight.compression.base import Codec, Packer, as_bytes, as_floats
from fedsight.compression.stream import KEY_BYTES, Stream
from fedsight.core.fixedpoint import largest
from fedsight.core.layout import Layout

VERSION = 1
CHECKSUM = 4  # bytes
HEADER = 1 + CHECKSUM + KEY_BYTES
LENGTH = 8  # bytes, before messages that differ in length


@dataclass(frozen=True)
class Pipeline:
    """The encoding of float32 vectors by codecs, one after the other.

    A message is its version (1 byte), the CRC-32 of what follows, the key of its random bits, the
    bytes of each step, and the values that the last step leaves, float32. All numbers are
    little-endian. With a `Packer` the message begins with its length (8 bytes), and what follows
    the checksum is packed, unless that makes it longer.
    """

    steps: Sequence[Codec]

    def fitted(self, layout: Layout) -> Pipeline:
        """The encoding of vectors of `layout`, which may end before it does: of its `travelling`
        values, or of its `shared` ones. Without it no value belongs to a tensor."""
        first, *others = self.steps
        return Pipeline((first.fitted(layout), *others))

    @property
    def warm(self) -> bool:
        """Whether the sender's last message makes the next one better."""
        return any(step.warm for step in self.steps)

    @property
    def unbiased(self) -> bool:
        """Whether the decoded values are the encoded ones in the mean over keys."""
        return all(step.unbiased for step in self.steps)

    @property
    def varies(self) -> bool:
        """Whether the length of a message depends on the values."""
        return self._packer is not None

    @property
    def _packer(self) -> Packer | None:
        last = self.steps[-1]
        return last if isinstance(last, Packer) else None

    def bytes(self, values: int) -> int:
        """Length of the message of `values` values; the most, if it varies."""
        total = HEADER + LENGTH * self.varies
        for step, given in self._lengths(values):
            total += step.bytes(given)
        return total + 4 * self.left(values)

    @property
    def linear(self) -> bool:
        """Whether what is left of a sum of vectors is the sum of what is left of each."""
        return all(step.linear for step in self.steps)

    def project(self, values: Tensor, key: int) -> Tensor:
        """What linear steps leave of float32 [n], without a message around it: float32 [left(n)].

        Raises ValueError for values that are not finite.
        """
        _require_finite(values)
        for place, step in enumerate(self.steps):
            _, values = step.encode(values, Stream(key, place))
        return values

    def expand(self, left: Tensor, values: int, key: int) -> Tensor:
        """What linear steps make of what they left, or of a sum of that: float32 [values]."""
        nothing, given = torch.empty(0, dtype=torch.uint8), list(self._lengths(values))
        for place, (step, length) in reversed(list(enumerate(given))):
            left = step.decode(nothing, left, length, Stream(key, place))
        return left

    def left(self, values: int) -> int:
        """Number of values that the last step leaves of so many."""
        for step in self.steps:
            values = step.left(values)
        return values

    def encode(self, values: Tensor, key: int, last: Tensor | None = None) -> Tensor:
        """float32 [n] -> uint8 [bytes(n)]; `key` is that of the random bits, and `last` is the
        message that the same sender sent before, if it remembers that.

        Raises ValueError for values that cannot be encoded, such as NaN.
        """
        _require_finite(values)
        steps: Sequence[Codec] = self.steps
        if last is not None and self.warm:
            lefts = self._decoded(last, len(values))[1:]
            steps = [step.following(one) for step, one in zip(steps, lefts, strict=True)]
        content, left = [_number(key, KEY_BYTES)], values
        for place, step in enumerate(steps):
            data, left = step.encode(left, Stream(key, place))
            content.append(data)
        body = torch.cat([*content, as_bytes(left)])
        if self._packer is not None:
            packed = self._packer.pack(body)
            body = packed if len(packed) < len(body) else body
        head = [_number(VERSION, 1), _number(_checksum(body), CHECKSUM)]
        if self.varies:
            head.insert(0, _number(LENGTH + 1 + CHECKSUM + len(body), LENGTH))
        return torch.cat([*head, body])

    def length_at(self, data: memoryview, start: int) -> int:
        """The length that the message states that begins at `start`, where it varies."""
        return int.from_bytes(data[start : start + LENGTH], "little")

    def decode(self, data: Tensor, values: int) -> Tensor:
        """uint8 [bytes(n)] -> float32 [n]. Raises ValueError for a message that is not whole."""
        return self._decoded(data, values)[0]

    def _decoded(self, data: Tensor, values: int) -> list[Tensor]:
        """What was encoded, and what each step left."""
        body = self._body(data, values)
        key = int.from_bytes(bytes(body[:KEY_BYTES].numpy()), "little")
        parts, at = [], KEY_BYTES
        for step, given in self._lengths(values):
            length = step.bytes(given)
            parts.append((step, given, body[at : at + length]))
            at += length
        found = [as_floats(body[at:])]
        for place, (step, given, sent) in reversed(list(enumerate(parts))):
            found.append(step.decode(sent, found[-1], given, Stream(key, place)))
        return found[::-1]

    def _body(self, data: Tensor, values: int) -> Tensor:
        """What follows the checksum, which is right; unpacked."""
        most = self.bytes(values)
        if self.varies:
            stated = int.from_bytes(bytes(data[:LENGTH].numpy()), "little")
            if stated != len(data) or not LENGTH + 1 + CHECKSUM < stated <= most:
                raise ValueError(f"it has {len(data):,} bytes, not {stated:,} of at most {most:,}")
            data, most = data[LENGTH:], most - LENGTH
        elif len(data) != most:
            raise ValueError(f"it has {len(data):,} bytes, not {most:,}")
        version, body = int(data[0]), data[1 + CHECKSUM :]
        if version != VERSION:
            raise ValueError(f"it is of version {version} of the encoding, not {VERSION}")
        if _checksum(body) != int.from_bytes(bytes(data[1 : 1 + CHECKSUM].numpy()), "little"):
            raise ValueError("its checksum is wrong: it was altered or damaged")
        if self._packer is not None and len(data) < most:
            return self._packer.unpack(body, most - 1 - CHECKSUM)
        return body

    def _lengths(self, values: int) -> Iterator[tuple[Codec, int]]:
        """Each step, and how many values it is given."""
        for step in self.steps:
            yield step, values
            values = step.left(values)


def _require_finite(values: Tensor) -> None:
    if not largest(values) < math.inf:  # NaN fails this too
        raise ValueError("it has values that are not finite (NaN or infinity)")


def _number(value: int, length: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(value.to_bytes(length, "little"), np.uint8).copy())


def _checksum(body: Tensor) -> int:
    return zlib.crc32(body.contiguous().numpy().data)
