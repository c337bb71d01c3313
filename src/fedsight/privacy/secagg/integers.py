"""Parts that are integers already: summed modulo 2^64 as they are, and read back with their sign.

Nothing is clipped, rounded or weighted. A site may send at most its part's bound, or an equal share
of 64 bits, so the true sum is within int64, and the sum modulo 2^64 determines it. With a bound b
the sum of n sites is within [-n b, n b]: its lowest m bits determine it if 2^m > 2 n b, and only
these are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.integers import check_share, peak, share_of
from fedsight.core.types import PartSpecs, Payload
from fedsight.privacy.secagg import pack
from fedsight.privacy.secagg.masks import WideResidues

MODULUS = 64  # bits


def check_form(payload: Payload, part: str, expected: tuple[int, torch.dtype], site: str) -> None:
    """Raise SiteError naming `site` unless a part is a vector of the expected length and type."""
    values, (size, dtype) = payload[part], expected
    if values.dtype != dtype or values.shape != (size,):
        raise SiteError(
            f"site '{site}' sent values of shape {tuple(values.shape)} and type {values.dtype} as "
            f"'{part}', expected ({size},) and {dtype}",
            "the site uses another model; compare the fingerprints",
        )


def beyond(who: str, came: int, most: int) -> SiteError:
    """The error for a number that no site, or no sum of honest sites, has."""
    return SiteError(
        f"{who} the number {came:,}, where at most {most:,} is possible",
        "a site sends what no FedSight sends. Under masks nobody can see which: leave out sites in "
        "turn (`fedsight federation revoke`), or find it in a run with secure.name = 'quantised'",
    )


@dataclass(frozen=True)
class Integers:
    """The integer parts of a round of at most `terms` sites: length and bound by name.

    A bound is the largest absolute value that a site may send.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    bounds: Mapping[str, int] = field(default_factory=dict)
    terms: int = 1

    @classmethod
    def of(cls, specs: PartSpecs, terms: int) -> Integers:
        """The parts of `specs`, all of them int64."""
        sizes = {part: spec.values for part, spec in specs.items()}
        bounds = {part: share_of(spec.bound, terms) for part, spec in specs.items()}
        return cls(sizes, bounds, terms)

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {"sizes": dict(self.sizes), "bounds": dict(self.bounds), "terms": self.terms}

    @property
    def length(self) -> int:
        """Number of values of all parts together, k."""
        return sum(self.sizes.values())

    def modulus(self, part: str) -> int:
        """Bits of each masked value of a part: 2 n b + 1 sums are possible."""
        return max(1, (2 * self.terms * self.bounds[part]).bit_length())

    @property
    def packed_size(self) -> int:
        """Bytes that a site sends."""
        return sum(pack.size(size, self.modulus(part)) for part, size in self.sizes.items())

    def check(self, payload: Payload, site: str) -> None:
        """Raise SiteError naming `site` for another type or length, or a value above the bound."""
        for part, size in self.sizes.items():
            check_form(payload, part, (size, torch.int64), site)
            check_share(payload[part], self.bounds[part], site)

    def encode(self, payload: Payload, site: str) -> WideResidues:
        """A site's integers [k] modulo 2^64; SiteError as `check` raises it."""
        self.check(payload, site)
        parts = [payload[part].numpy().view(np.uint64) for part in self.sizes]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def decode(self, total: WideResidues) -> dict[str, Tensor]:
        """The sum of each part, int64 [size], from the sums modulo 2^64, or 2^m, that came."""
        found = {}
        for part, values in self._parts(total).items():
            unused = MODULUS - self.modulus(part)
            signed = (values << np.uint64(unused)).view(np.int64) >> np.int64(unused)
            found[part] = torch.from_numpy(signed)
        return found

    def check_sums(self, total: WideResidues, count: int, who: str) -> None:
        """Raise SiteError if the integers in `total` [k] are not within those of `count` sites."""
        for part, values in self.decode(total).items():
            most = count * self.bounds[part]
            if peak(values) > most:
                raise beyond(who, peak(values), most)

    def pack(self, words: WideResidues) -> bytes:
        """The lowest bits of each of `words` [k], which determine their sum."""
        packed = b""
        for part, values in self._parts(words).items():
            bits = self.modulus(part)
            packed += pack.pack(pack.lowest(values, bits), bits)
        return packed

    def unpack(self, data: bytes | bytearray | memoryview) -> WideResidues:
        """The words [k] in `data`; ValueError if its length is wrong."""
        if len(data) != self.packed_size:
            raise ValueError(f"expected {self.packed_size:,} bytes of integers, not {len(data):,}")
        found, start = [np.empty(0, np.uint64)], 0
        for part, size in self.sizes.items():
            stop = start + pack.size(size, self.modulus(part))
            found.append(pack.unpack_wide(data[start:stop], size, self.modulus(part)))
            start = stop
        return np.concatenate(found)

    def _parts(self, words: WideResidues) -> dict[str, WideResidues]:
        found, start = {}, 0
        for part, size in self.sizes.items():
            found[part] = words[start : start + size]
            start += size
        return found
