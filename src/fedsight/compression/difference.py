"""What takes a site from the vector that it holds to the next one: an encoded difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsight.compression.base import as_bytes, as_floats
from fedsight.compression.pipeline import Pipeline


@dataclass(frozen=True)
class Difference:
    """The encoding of a vector [values] as its difference to one that the receiver holds.

    The first `learnt` values, the parameters, are encoded. Running statistics follow, float32 as
    they are: few values, of which a variance must not become negative.

    The sender differences against what the receiver has decoded so far, not against what it meant
    to send, so each message also holds the error of the last one (Gruntkowska et al. 2022, EF21-P,
    equation 9): w' = w + C(x - w). No memory of errors is needed.
    """

    pipeline: Pipeline
    learnt: int
    values: int

    @property
    def bytes(self) -> int:
        """The bytes of a message; the most, if the pipeline's length varies."""
        return self.pipeline.bytes(self.learnt) + 4 * (self.values - self.learnt)

    def encode(self, held: Tensor, vector: Tensor, key: int, last: Tensor | None = None) -> Tensor:
        """The message, uint8, that takes `held` to `vector`, nearly; both float32 [values].

        Random bits follow from `key`; `last` is the message before, if there was one. Raises
        ValueError for a difference that cannot be encoded.
        """
        moved = vector[: self.learnt] - held[: self.learnt]
        before = None if last is None else last[: len(last) - 4 * (self.values - self.learnt)]
        message = self.pipeline.encode(moved, key, before)
        return torch.cat([message, as_bytes(vector[self.learnt :])])

    def decode(self, held: Tensor, message: Tensor) -> Tensor:
        """The vector [values] that a message makes of the one held.

        Raises ValueError for a message that was cut off, altered, or is not of this encoding.
        """
        if len(held) != self.values:
            raise ValueError(f"it is to a vector of {self.values:,} values, not {len(held):,}")
        rest = 4 * (self.values - self.learnt)
        body = len(message) - rest
        if body < 0:
            raise ValueError(f"it has {len(message):,} bytes, not {self.bytes:,}")
        moved = self.pipeline.decode(message[:body], self.learnt)
        return torch.cat([held[: self.learnt] + moved, as_floats(message[body:])])
