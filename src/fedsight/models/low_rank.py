"""Weights with a change of low rank beside them: W + scale BA, computed anew in each pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from fedsight.core.layout import Entry, Kind, Layout
from fedsight.core.threads import one_thread

PLACE = "parametrizations.weight"  # of a layer, in the names of its tensors
_BASE, _DOWN, _UP, _SCALE = (f".{PLACE}.{end}" for end in ("original", "0.A", "0.B", "0.scale"))


class LowRank(nn.Module):
    """Maps a weight W [o, ...] to W + scale BA (Hu et al. 2021, equation 3), of the same shape.

    A is [rank, i], B is [o, rank], and i is the number of values of an output's filter. A is drawn
    uniformly with variance 1 / (3 i), as the paper's own code does, and B is zero: the weight
    begins as it is. For a convolution of two dimensions the columns of A are in the order (height,
    width, channel), that of the memory of its weight.

    The change is made to the weight rather than to the layer's output. So it is the same few lines
    for every kind of convolution, and the merged weight has the same bits as the one that learnt.
    """

    scale: Tensor

    def __init__(self, shape: torch.Size, rank: int, scale: float, draws: Generator) -> None:
        super().__init__()
        outputs, inputs = sides(shape)
        bound = 1 / math.sqrt(inputs)
        start = torch.empty(rank, inputs).uniform_(-bound, bound, generator=draws)
        self.A = nn.Parameter(start)
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        # Saved with the rest, so that a file of weights says all that merging needs.
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, weight: Tensor) -> Tensor:
        """W -> W + scale BA."""
        return changed(weight, self.A, self.B, self.scale)


def changed(weight: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """W + scale BA, in the shape of W [o, ...]; `down` is A, `up` is B."""
    change = (up @ down) * scale
    if weight.dim() != 4:
        return weight + change.view(weight.shape)
    outputs, channels, height, width = weight.shape
    return weight + change.view(outputs, height, width, channels).permute(0, 3, 1, 2)


def sides(shape: torch.Size) -> tuple[int, int]:
    """A weight as a matrix: outputs, and values of an output's filter."""
    return shape[0], math.prod(shape[1:])


def beside_factors(layout: Layout) -> frozenset[str]:
    """The names of the frozen weights W beside an A and a B that both travel."""
    kinds = {entry.name: entry.kind for entry in layout.entries}
    travels = {name for name, kind in kinds.items() if kind in (Kind.SHARED, Kind.BUFFER)}
    layers = [name.removesuffix(_BASE) for name, kind in kinds.items() if kind == Kind.FROZEN]
    return frozenset(layer + _BASE for layer in layers if {layer + _DOWN, layer + _UP} <= travels)


@dataclass(frozen=True)
class Products:
    """scale BA of the factors in a vector, one after the other, each as its W lies in memory."""

    factors: tuple[tuple[Entry, Entry, float], ...]  # A, B and scale, in the order of the weights

    @classmethod
    def moving(cls, module: nn.Module, layout: Layout) -> Products:
        """Those that belong to the weights W of `module` that the coordinator moves."""
        known = {entry.name: entry for entry in layout.entries}
        layers = [e.name.removesuffix(_BASE) for e in layout.entries if e.kind == Kind.MOVED]
        return cls(
            tuple(
                (known[layer + _DOWN], known[layer + _UP], float(module.get_buffer(layer + _SCALE)))
                for layer in layers
            )
        )

    @property
    def values(self) -> int:
        """Number of values of all products."""
        return sum(up.shape[0] * down.shape[1] for down, up, _ in self.factors)

    def of(self, vector: Tensor) -> Tensor:
        """The products, float64 [values], of a vector that begins as the layout does."""
        exact = vector.double()
        with one_thread():  # or the last bit might depend on how many there are
            products = [
                (up.view(exact) @ down.view(exact) * scale).reshape(-1)
                for down, up, scale in self.factors
            ]
        return torch.cat(products)


def merge(module: nn.Module) -> nn.Module:
    """`module` with every low-rank change in its plain weights, in place; returns it."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            chain = part.parametrizations.weight  # type: ignore[union-attr]
            if isinstance(chain[0], LowRank):  # type: ignore[index]
                parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return module


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under plain names: those of a low-rank change become one weight."""
    found = dict(state)
    for name in state:
        layer = name.removesuffix(_BASE)
        if layer != name and {layer + _DOWN, layer + _UP, layer + _SCALE} <= state.keys():
            tensors = (found.pop(layer + end) for end in (_BASE, _DOWN, _UP, _SCALE))
            found[f"{layer}.weight"] = changed(*tensors)
    return found
