"""Low rank: two thin matrices in the place of a large one."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from fedsight.compression.base import Codec, Coded, codecs
from fedsight.compression.stream import Stream
from fedsight.core.layout import Layout

Matrix = tuple[int, int, int]  # where it begins in the vector, its rows, its columns


@codecs.add("low-rank", paper="Vogels et al. 2019 (PowerSGD), Algorithm 1")
class LowRank(Codec):
    """Two thin matrices in the place of each large layer's, whose product is nearly that one.

    A matrix M [n, m] becomes P [n, rank] and Q [m, rank], and P Q' is M on the span of P; biases,
    norms and small layers are left as they are. P is an orthonormal basis of the columns of M Q,
    where Q is that of the sender's last message (a warm start, which `codec.up.feedback = true`
    remembers), or random; then Q = M' P. A matrix of at most that rank comes back as it was. A
    convolution's rows are its output channels. What is decoded is not right in the mean: set
    `codec.up.feedback = true`.
    """

    unbiased: ClassVar[bool] = False
    shaped: ClassVar[bool] = True
    warm: ClassVar[bool] = True

    rank: int = Field(4, ge=1, le=128)  # of the matrices that are sent; smaller layers are left

    _matrices: tuple[Matrix, ...] = PrivateAttr(())
    _last: Tensor | None = PrivateAttr(None)  # what it left of the sender's last vector

    def fitted(self, layout: Layout) -> Self:
        """The same for the tensors of `layout`: those that two thin matrices are smaller than."""
        found = []
        for entry in layout.entries:
            rows = entry.shape[0] if len(entry.shape) > 1 else 1
            columns = entry.size // max(rows, 1)
            if self.rank * (rows + columns) < rows * columns:
                found.append((entry.start, rows, columns))
        other = self.model_copy()
        other._matrices = tuple(found)
        return other

    def following(self, left: Tensor) -> Self:
        """The same, with the Q of `left` as its start."""
        other = self.model_copy()
        other._last = left
        return other

    def bytes(self, values: int) -> int:
        """None: all that it makes is values, which a next step may encode."""
        return 0

    def left(self, values: int) -> int:
        """P and Q of each matrix, and the values of no matrix."""
        saved = (n * m - self.rank * (n + m) for _, n, m in self._within(values))
        return values - sum(saved)

    def encode(self, values: Tensor, stream: Stream) -> Coded:
        """P and Q of one matrix after the other, then the values of no matrix in their order."""
        found, at, rank = [], 0, self.rank
        for start, rows, columns in self._within(len(values)):
            matrix = values[start : start + rows * columns].view(rows, columns)
            begun = stream.uniforms(columns * rank).sub_(0.5).view(columns, rank)
            if self._last is not None:
                here = at + rows * rank
                last = self._last[here : here + columns * rank].view(columns, rank)
                begun = torch.where(last.any(0), last, begun)
            found += [one.reshape(-1) for one in _factors(matrix, begun)]
            at += (rows + columns) * rank
        rest = torch.cat([values[part] for part in self._rest(len(values))])
        return torch.empty(0, dtype=torch.uint8), torch.cat([*found, rest])

    def decode(self, data: Tensor, left: Tensor, values: int, stream: Stream) -> Tensor:
        """P Q' in the place of each matrix: sums of products of two values in a fixed order, so
        that every machine makes the same bits."""
        found, at, rank = torch.empty(values), 0, self.rank
        for start, rows, columns in self._within(values):
            p, q = left[at : at + (rows + columns) * rank].split([rows * rank, columns * rank])
            p, q = p.view(rows, rank), q.view(columns, rank).t().contiguous()
            matrix = found[start : start + rows * columns].view(rows, columns)
            torch.mul(p[:, :1], q[0], out=matrix)
            for number in range(1, rank):
                matrix += p[:, number, None] * q[number]
            at += (rows + columns) * rank
        for part in self._rest(values):
            found[part] = left[at : at + part.stop - part.start]
            at += part.stop - part.start
        return found

    def _within(self, values: int) -> list[Matrix]:
        """The matrices of a vector, which may end before the layout does."""
        return [one for one in self._matrices if one[0] + one[1] * one[2] <= values]

    def _rest(self, values: int) -> list[slice]:
        """What is in no matrix."""
        found, at = [], 0
        for start, rows, columns in self._within(values):
            found.append(slice(at, start))
            at = start + rows * columns
        return [*found, slice(at, values)]


def _factors(matrix: Tensor, begun: Tensor) -> tuple[Tensor, Tensor]:
    """P and Q, float32, of a matrix [n, m] from a start [m, rank].

    Powers of two make them alike in size, so that a next step rounds both as well.
    """
    scale = float(matrix.abs().max())
    begun = begun.double() / begun.double().norm(dim=0)
    p = torch.linalg.qr((matrix / (scale or 1.0) @ begun.float()).double()).Q
    q = scale * (matrix.t() / (scale or 1.0) @ p.float()).double()
    apart = float(q.square().mean() / p.square().mean())
    if not apart > 0:
        return torch.zeros(p.shape), torch.zeros(q.shape)
    factor = 2.0 ** round(math.log2(apart) / 4)
    return (p * factor).float(), (q / factor).float()
