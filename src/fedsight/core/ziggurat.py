"""Tables of the ziggurat method for exponential and normal draws (Marsaglia and Tsang 2000).

They are computed in decimal arithmetic, whose rounding is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import NamedTuple

LAYERS = 256
_DIGITS = 40
# Where the lowest layer ends, and the area of each layer: the solution for 256 layers.
_EDGE_EXPONENTIAL = Decimal("7.6971174701310497140446280481")
_EDGE_NORMAL = Decimal("3.6541528853610087963519472518")
_AREA_NORMAL = Decimal("0.0049286732339746549315909134318")


class Ziggurat(NamedTuple):
    """Layers of equal area under a falling density f with f(0) = 1, from the lowest."""

    edge: float  # where the tail begins
    width: tuple[float, ...]  # of each layer, per unit of the random integer
    inside: tuple[int, ...]  # random integers below it need no further look at the density
    height: tuple[float, ...]  # f at each layer's right end; of layer 0 f(0)


Curve = Callable[[Decimal], Decimal]


def _made(edge: Decimal, area: Decimal, density: Curve, inverse: Curve, bits: int) -> Ziggurat:
    """The layers for random integers of so many bits."""
    unit = Decimal(2**bits)
    ends = [edge]  # of the layers from 255 down to 1
    while len(ends) < LAYERS - 1:
        ends.append(inverse(area / ends[-1] + density(ends[-1])))
    ends.reverse()
    base = area / density(edge)  # as wide as a rectangle with the area of layer 0
    within = [edge / base, Decimal(0)]
    within += [inner / outer for inner, outer in pairwise(ends)]
    return Ziggurat(
        float(edge),
        tuple(float(end / unit) for end in [base, *ends]),
        tuple(int(share * unit) for share in within),
        (1.0, *(float(density(end)) for end in ends)),
    )


@cache
def exponential() -> Ziggurat:
    """For f(x) = exp(-x) and integers of 53 bits."""
    with localcontext() as context:
        context.prec = _DIGITS
        area = (_EDGE_EXPONENTIAL + 1) * (-_EDGE_EXPONENTIAL).exp()
        return _made(_EDGE_EXPONENTIAL, area, lambda x: (-x).exp(), lambda y: -y.ln(), 53)


@cache
def normal() -> Ziggurat:
    """For f(x) = exp(-x^2 / 2) and integers of 52 bits."""
    with localcontext() as context:
        context.prec = _DIGITS
        return _made(
            _EDGE_NORMAL,
            _AREA_NORMAL,
            lambda x: (-x * x / 2).exp(),
            lambda y: (-2 * y.ln()).sqrt(),
            52,
        )
