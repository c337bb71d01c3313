"""Quantisation of updates to integers whose sum fits a modulus, and of sums back to a mean.

A value x of a client with weight w is clipped to [-c, c] and scaled to y = x w / cap. Its level is
(y + c) (2^b - 1) / (2c), rounded up or down at random so that the mean is exact (stochastic
rounding; Bonawitz et al. 2019, "Federated learning with autotuned communication-efficient secure
aggregation", section 3). A sum of n levels is below 2^m with m = b + ceil(log2 n). Because w / cap
is at most 1, weights cost no bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.rng import generator
from fedsight.core.types import Payload
from fedsight.privacy import skellam
from fedsight.privacy.noise import MakeNoise
from fedsight.privacy.poisson import Uniform
from fedsight.privacy.secagg.integers import Integers, beyond, check_form
from fedsight.privacy.secagg.masks import Residues

MODULUS = 32  # bits, at most
_BLOCK = 1 << 16  # values rounded at once; it determines the draws, so it must not change


def spare(terms: int) -> int:
    """ceil(log2 terms): the additional bits that a sum of `terms` numbers needs."""
    return (terms - 1).bit_length()


@dataclass(frozen=True)
class Quantiser:
    """The encoding of a round, which is public and the same at every site.

    `sizes` and `ranges` (largest absolute value) are those of each part that is rounded; `norm` is
    the largest joint L2 norm of these, before weighting. `integers` are the parts that are not.
    """

    sizes: Mapping[str, int]
    ranges: Mapping[str, float]
    norm: float | None
    bits: int  # per value of a site
    terms: int  # largest number of sites in a sum
    cap: int  # largest weight
    deviation: float = 0.0  # standard deviation of the Skellam noise that a site adds, in levels
    integers: Integers = field(default_factory=Integers)

    @property
    def modulus(self) -> int:
        """Bits of a sum and of every masked value."""
        return (skellam.room(self.terms, self._top, self.deviation) - 1).bit_length()

    @property
    def length(self) -> int:
        """Number of rounded values of all parts together, d."""
        return sum(self.sizes.values())

    def table(self) -> dict[str, Any]:
        """As plain values."""
        plain = {"sizes": dict(self.sizes), "ranges": dict(self.ranges)}
        return {**asdict(self), **plain, "integers": self.integers.table()}

    def encode(
        self,
        payload: Payload,
        weight: int,
        site: str,
        seed: int | None,
        round: int,
        noise: MakeNoise | None = None,
    ) -> Residues:
        """A client's levels [d], each below 2^bits before noise, which is drawn from `noise`.

        The draws that round depend only on the seed, the site and the round, not on the engine;
        without a seed they come from `noise`, too, and nobody else knows them. Raises SiteError
        naming `site` for wrong parts or lengths, for NaN or infinity, and for a weight above the
        cap.
        """
        self.check(payload, weight, site)
        draws = _draws(seed, site, round, noise)
        shrink, share = self._shrink(payload), weight / self.cap
        out = np.empty(self.length, np.uint32)
        start = 0
        for part, size in self.sizes.items():
            values = payload[part].numpy()
            for first in range(0, size, _BLOCK):
                block = values[first : first + _BLOCK]
                at = start + first
                out[at : at + len(block)] = self._levels(
                    block, self.ranges[part], shrink, share, draws
                )
            start += size
        if self.deviation:
            out += self._noise(out, site, round, noise)
        return out

    def _noise(self, levels: Residues, site: str, round: int, noise: MakeNoise | None) -> Residues:
        """Noise [d] modulo 2^32. The levels and the deviation are part of its key, because the same
        update rounded for another cohort must not get the same noise at another scale."""
        path = "round", round, "site", site, "levels", repr(self.deviation)
        values = [torch.from_numpy(levels.view(np.int32))]
        stream = _source(noise, site)(*path, values=values)
        return skellam.noise(len(levels), self.deviation, stream.uniform).astype(np.uint32)

    def decode(self, total: Residues, count: int, weight: int) -> dict[str, Tensor]:
        """Weighted mean of each part, float64, from the sum of `count` clients' levels."""
        found, start = {}, 0
        for part, size in self.sizes.items():
            c = self.ranges[part]
            levels = self._unwrapped(total[start : start + size], count)
            levels *= 2 * c / self._top
            levels -= count * c
            levels *= self.cap / max(weight, 1)
            found[part] = torch.from_numpy(levels)
            start += size
        return found

    def check(self, payload: Payload, weight: int, site: str) -> None:
        """Raise SiteError unless this payload can be added."""
        if payload.keys() != self.sizes.keys() | self.integers.sizes.keys():
            came, wanted = sorted(map(str, payload)), sorted([*self.sizes, *self.integers.sizes])
            raise SiteError(
                f"site '{site}' sent the parts {came}, expected {wanted}",
                "the site uses another algorithm; compare the fingerprints",
            )
        if type(weight) is not int or not 0 < weight <= self.cap:
            raise SiteError(
                f"site '{site}' has weight {weight!r}, but secure.cap is {self.cap}",
                "raise secure.cap to the largest number of images at a site, or set "
                "rounds.weighting = 'uniform'",
            )
        for part, size in self.sizes.items():
            values = payload[part]
            check_form(payload, part, (size, torch.float32), site)
            edges = torch.aminmax(values) if size else ()
            if not all(abs(float(edge)) < float("inf") for edge in edges):  # NaN fails this too
                raise SiteError(
                    f"site '{site}' sent an update that is not finite (NaN or infinity)",
                    "its training diverged or its data are broken: lower train.lr, set train.clip "
                    "or check its images; with rounds.quorum a run continues without such replies",
                )
        self.integers.check(payload, site)

    def check_levels(self, levels: Residues, count: int, who: str) -> None:
        """Raise SiteError if levels [d] without masks are larger than those of `count` sites.

        Modulo 2^m they would wrap, or exceed the clip. With noise any levels are possible.
        """
        most = count * self._top
        if not self.deviation and len(levels) and int(levels.max()) > most:
            raise beyond(who, int(levels.max()), most)

    def _unwrapped(self, total: Residues, count: int) -> npt.NDArray[np.float64]:
        """Sums of `count` clients before the modulus was taken; noise may make them negative."""
        levels = total.astype(np.float64)
        if self.deviation:
            high = count * self._top
            levels[levels > (high + (1 << self.modulus)) / 2] -= 1 << self.modulus
        return levels

    @property
    def _top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    def _shrink(self, payload: Payload) -> float:
        """The factor that scales the whole payload to an L2 norm of at most `norm`."""
        if self.norm is None:
            return 1.0
        square = 0.0
        for part in self.sizes:
            # Not a dot product: its rounding would depend on the number of threads.
            square += float(np.square(payload[part].numpy().astype(np.float64)).sum())
        return min(1.0, self.norm / max(math.sqrt(square), 1e-300))

    def _levels(
        self,
        values: npt.NDArray[np.float32],
        c: float,
        shrink: float,
        share: float,
        draws: Uniform,
    ) -> Residues:
        y = values.astype(np.float64)
        y *= shrink
        np.clip(y, -c, c, out=y)
        y *= share
        y += c
        y *= self._top / (2 * c)
        y += draws(len(values))
        # A draw is below 1, but the floating-point sum might still round up past the top level.
        return np.minimum(np.floor(y, out=y), self._top).astype(np.uint32)


def _draws(seed: int | None, site: str, round: int, noise: MakeNoise | None) -> Uniform:
    """Numbers from 0 to 1 that decide the rounding, block after block."""
    path = "round", round, "site", site, "rounding"
    if seed is None:
        return _source(noise, site)(*path).uniform
    made = generator(seed, *path)
    return lambda size: torch.rand(size, generator=made, dtype=torch.float64).numpy()


def _source(noise: MakeNoise | None, site: str) -> MakeNoise:
    """Where a site's noise comes from; SiteError without one: never a release without its noise."""
    if noise is None:
        raise SiteError(f"site '{site}' has no source of noise", "this is a bug in FedSight")
    return noise
