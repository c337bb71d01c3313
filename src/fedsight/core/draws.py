"""Random draws that no library's version changes: who has which images, and who takes part.

NumPy promises that its bit generators give the same bits for ever, but not that its distributions
do (NEP 19). So only the bits come from NumPy: those of PCG64 (O'Neill 2014). What is made of them
is written here, after the papers named, and `tests/core/test_draws.py` holds it to known answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedsight.core import ziggurat
from fedsight.core.rng import Step, derive

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_HALF = 0xFFFFFFFF
_AHEAD = 256  # words taken at once, because a call for each would take most of the time
_FLAT = 0.1  # from this alpha on no gamma draw of a Dirichlet law underflows


def draws(seed: int, *path: Step) -> Draws:
    """The draws for `path` under `seed`, e.g. `draws(0, "split", "iid")`."""
    return Draws(derive(seed, *path))


class Draws:
    """A stream of draws; equal seeds give equal streams."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._ahead: list[int] = []  # words to come, the next one last
        self._spare: int | None = None  # the second half of the last word, if it is still unused

    def uniforms(self, count: int) -> Floats:
        """Uniform numbers in [0, 1), multiples of 2^-53 [count]."""
        known = [self._ahead.pop() for _ in range(min(count, len(self._ahead)))]
        words = np.array(known, dtype=np.uint64)
        words = np.concatenate([words, self._bits.random_raw(count - len(known))])
        found: Floats = (words >> np.uint64(11)) * np.float64(2.0**-53)
        return found

    def uniform(self) -> float:
        """A uniform number in [0, 1), a multiple of 2^-53."""
        return (self._word() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound` - 1, without bias (Lemire 2019, algorithm 5).

        A bound of 1 takes no random bits. Raises ValueError for one that is not in 1 to 2^32.
        """
        if not 1 <= bound <= 2**32:
            raise ValueError(f"expected a bound from 1 to 2^32, got {bound}")
        while bound > 1:
            product = self._half() * bound
            if product & _HALF >= (2**32 - bound) % bound:
                return product >> 32
        return 0

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def permutation(self, items: int | Sequence[int] | Indices) -> Indices:
        """`items`, or the numbers below it, in random order [n] (Fisher and Yates 1938)."""
        given = np.arange(items) if isinstance(items, int | np.integer) else np.asarray(items)
        order = list(range(len(given)))
        half = self._half
        for at in range(len(order) - 1, 0, -1):
            # As many bits as `at` has; what is above it is drawn again, so nothing is preferred.
            mask = (1 << at.bit_length()) - 1
            while (other := half() & mask) > at:
                pass
            order[at], order[other] = order[other], order[at]
        return given[np.array(order, dtype=np.int64)]

    def sample(self, total: int, count: int) -> Indices:
        """`count` different numbers below `total`, ascending [count].

        Floyd's algorithm (Bentley and Floyd 1987); its time does not depend on `total`.
        """
        chosen: set[int] = set()
        for last in range(total - count, total):
            drawn = self.below(last + 1)
            chosen.add(last if drawn in chosen else drawn)
        return np.array(sorted(chosen), dtype=np.int64)

    def choose(self, weights: Floats | Sequence[float], count: int) -> Indices:
        """Places in `weights`, each with its weight's share of the sum as probability [count]."""
        ends = np.cumsum(np.asarray(weights, dtype=np.float64))
        return np.searchsorted(ends / ends[-1], self.uniforms(count), side="right").astype(np.int64)

    def exponential(self) -> float:
        """From the exponential distribution of mean 1 (Marsaglia and Tsang 2000)."""
        table = ziggurat.exponential()
        while True:
            word = self._word() >> 3
            layer, word = word & 0xFF, word >> 8
            x = word * table.width[layer]
            if word < table.inside[layer]:
                return x
            if layer == 0:
                return table.edge - math.log1p(-self.uniform())
            if self._height(table, layer) < math.exp(-x):
                return x

    def normal(self) -> float:
        """From the standard normal distribution (Marsaglia and Tsang 2000)."""
        table = ziggurat.normal()
        while True:
            word = self._word()
            layer, sign, word = word & 0xFF, (word >> 8) & 1, (word >> 9) & (2**52 - 1)
            x = word * table.width[layer]
            if word < table.inside[layer]:
                return -x if sign else x
            if layer == 0:
                x = self._tail(table.edge)
                return -x if (word >> 8) & 1 else x
            if self._height(table, layer) < math.exp(-0.5 * x * x):
                return -x if sign else x

    def gamma(self, shape: float) -> float:
        """From the gamma distribution of `shape` > 0 and scale 1.

        Marsaglia and Tsang (2000, A Simple Method for Generating Gamma Variables) for shapes above
        1, Ahrens and Dieter (1974) as Devroye (1986, p. 425) has it for those below.
        """
        if shape == 1.0:
            return self.exponential()
        if shape < 1.0:
            return self._small_gamma(shape)
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x, v = 0.0, 0.0
            while v <= 0.0:
                x = self.normal()
                v = 1.0 + c * x
            v = v * v * v
            u = self.uniform()
            if u < 1.0 - 0.0331 * (x * x) * (x * x):
                return d * v
            if u == 0.0 or math.log(u) < 0.5 * x * x + d * (1.0 - v + math.log(v)):
                return d * v

    def dirichlet(self, alpha: float, count: int) -> Floats:
        """Shares that sum to 1, from the Dirichlet distribution with `count` times `alpha`."""
        if alpha >= _FLAT:
            made = np.array([self.gamma(alpha) for _ in range(count)])
            return made * (1.0 / math.fsum(made))
        # A gamma draw of so small a shape may be 0; its logarithm is that of shape alpha + 1 plus
        # log(u) / alpha (Marsaglia and Tsang 2000, section 6).
        logs = np.array(
            [
                math.log(self.gamma(alpha + 1.0)) + math.log1p(-self.uniform()) / alpha
                for _ in range(count)
            ]
        )
        parts = np.exp(logs - logs.max())
        shares: Floats = parts / math.fsum(parts)
        return shares

    def _word(self) -> int:
        if not self._ahead:
            self._ahead = self._bits.random_raw(_AHEAD)[::-1].tolist()
        return self._ahead.pop()

    def _height(self, table: ziggurat.Ziggurat, layer: int) -> float:
        """A height between the two ends of a layer."""
        top, bottom = table.height[layer - 1], table.height[layer]
        return (top - bottom) * self.uniform() + bottom

    def _tail(self, edge: float) -> float:
        """The absolute value of a normal draw, given that it is above `edge` (Marsaglia 1964)."""
        while True:
            x = -math.log1p(-self.uniform()) / edge
            y = -math.log1p(-self.uniform())
            if y + y > x * x:
                return edge + x

    def _small_gamma(self, shape: float) -> float:
        while True:
            u, v = self.uniform(), self.exponential()
            if u <= 1.0 - shape:
                x = math.pow(u, 1.0 / shape)
                if x <= v:
                    return x
            else:
                y = -math.log((1.0 - u) / shape)
                x = math.pow(1.0 - shape + shape * y, 1.0 / shape)
                if x <= v + y:
                    return x

    def _half(self) -> int:
        """32 random bits: the lower half of a word before the upper one."""
        if self._spare is None:
            word = self._word()
            self._spare = word >> 32
            return word & _HALF
        half, self._spare = self._spare, None
        return half
