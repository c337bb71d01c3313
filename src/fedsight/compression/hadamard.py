"""A random rotation: signs, then Walsh's functions, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsight.compression.stream import Stream

CHUNK = 1 << 16  # values that are transformed at once, which fit a processor's cache


def padded(values: int, block: int) -> int:
    """The number of values after rotation: of whole blocks, and of a last one whose length is the
    least power of two that will do."""
    whole, rest = divmod(values, block)
    return whole * block + (1 << (rest - 1).bit_length() if rest else 0)


def rotate(values: Tensor, block: int, stream: Stream) -> Tensor:
    """Multiply by random signs and transform each block: a rotation (Ailon and Chazelle 2009).

    float32 [n] -> [padded(n, block)]; the last block is filled up with zeros.
    """
    length = padded(len(values), block)
    found = torch.zeros(length)
    found[: len(values)] = values
    _transform(found.mul_(stream.signs(length)), block)
    return found


def rotate_back(values: Tensor, count: int, block: int, stream: Stream) -> Tensor:
    """The inverse: [padded(count, block)] -> [count]."""
    found = values.clone()
    _transform(found, block, back=True)
    return found.mul_(stream.signs(len(values)))[:count]


def _transform(values: Tensor, block: int, back: bool = False) -> None:
    """Each block, as a matrix X [a, b], becomes the transpose of H X H / root(a b), in place; H are
    Hadamard matrices. `back` undoes it.

    Sums and differences, and one product: every machine makes the same bits.
    """
    whole = len(values) // block * block
    if whole:
        for part in values[:whole].split(max(CHUNK // block, 1) * block):
            _walsh(part, block, back)
    if rest := len(values) - whole:
        _walsh(values[whole:], rest, back)


def _walsh(values: Tensor, block: int, back: bool) -> None:
    rows = 1 << (block.bit_length() // 2)
    rows, columns = (block // rows, rows) if back else (rows, block // rows)
    half = _columns(values.view(-1, rows, columns)).transpose(1, 2).contiguous()
    values.copy_(_columns(half).view(-1)).mul_(block**-0.5)


def _columns(here: Tensor) -> Tensor:
    """H X for matrices X [m, n, k], whose rows are long enough to be added fast."""
    count, length, width = here.shape
    other, span = torch.empty_like(here), 1
    while span < length:
        pairs, out = (one.view(count, -1, 2, span * width) for one in (here, other))
        torch.add(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 0])
        torch.sub(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 1])
        here, other = other, here if span > 1 else torch.empty_like(here)
        span *= 2
    return here
