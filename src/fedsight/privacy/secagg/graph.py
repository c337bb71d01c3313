"""The graph of a round: which sites mask with each other, and the threshold of the secrets.

Up to `COMPLETE` sites the graph is complete. Above, the sites are arranged in a circle in an order
drawn for the round, and the neighbours of a site are the k sites next to it (a Harary graph; Bell
et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead", CCS).

In the complete graph a site also holds a share of its own seed, so whichever sites drop out, every
secret has as many shares left as there are survivors.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

from fedsight.core.errors import SiteError

COMPLETE = 100  # sites up to which the graph is complete
SECURITY = 40  # bits: an attack succeeds with probability at most 2^-40
# bits: there are two attacks, a captured neighbourhood and a disconnected graph
_EVENT = SECURITY + 1
FAILURE = 20  # bits: a round fails because of too many drop-outs with probability at most 2^-20
FEWEST = 3  # sites: in a sum of two, each site can compute the other's update


@dataclass(frozen=True)
class Parameters:
    """The graph of a round: `neighbours` k, `threshold` t of the shares, fewest `survivors`."""

    neighbours: int
    threshold: int
    survivors: int


def colluding(sites: int, corrupt: float) -> int:
    """The most of `sites` sites that collude with the coordinator, at rate `corrupt`."""
    return math.floor(corrupt * sites + 1e-9)


@lru_cache(maxsize=64)
def parameters(
    sites: int, corrupt: float, dropout: float, split_view: bool, complete: int = COMPLETE
) -> Parameters:
    """The smallest k and t that are secure and robust at the given rates, for `sites` sites.

    At most `colluding` sites collude with the coordinator, and ceil(dropout * sites) drop out.
    Secure: no neighbourhood contains so many colluders X that they and the coordinator learn both
    the seed and the mask key of a site. An honest-but-curious coordinator needs t shares from
    colluders, X >= t. With `split_view` the coordinator may tell each honest neighbour something
    different, and each answers for one of the two secrets: both are learnt if k + X >= 2t. Robust:
    at least t neighbours of a site survive. Both hold for all sites by a union bound on
    hypergeometric tails, in exact integers (after Bell et al. 2020, section 3). The graph of the
    honest survivors is connected unless two whole arcs of k/2 sites each are missing. Each of the
    two ways to fail has probability at most 2^-41.

    Raises SiteError if no choice is both secure and robust.
    """
    bad, gone = colluding(sites, corrupt), math.ceil(dropout * sites - 1e-9)
    if sites < FEWEST:
        raise SiteError(
            f"secure aggregation over {sites} sites hides nothing",
            f"let at least {FEWEST} sites take part in each round",
        )
    found = _whole(sites, bad, gone, split_view) if sites <= complete else None
    if sites > complete:
        found = _sparse(sites, bad, gone, split_view)
    if found is None:
        raise SiteError(
            f"with {sites} sites, of which {bad} collude and {gone} drop out, no threshold is both "
            "secure and robust",
            "lower secure.corrupt or secure.dropout to what you need to withstand, or let more "
            "sites take part",
        )
    k, t = found
    strict = split_view or sites > complete  # then security depends on the stated drop-out rate
    return Parameters(k, t, max(t, sites - gone) if strict else t)


def _whole(sites: int, bad: int, gone: int, split_view: bool) -> tuple[int, int] | None:
    """k and t of the complete graph, if there are any."""
    k = sites - 1
    # Together with the site itself, a seed has k + 1 holders.
    t = max(2, (sites + bad) // 2 + 1 if split_view else bad + 1)
    return (k, t) if sites - gone >= t else None


def _sparse(sites: int, bad: int, gone: int, split_view: bool) -> tuple[int, int] | None:
    """The smallest even k, and the smallest t for it."""
    for k in range(2, sites - 1, 2):
        t = _secure(sites, bad, k, split_view)
        if k - t < 0 or not _rare(sites, gone, k, k - t + 1, FAILURE):
            continue
        if _connected(sites, bad + gone, k):
            return k, t
    return None


def _secure(sites: int, bad: int, k: int, split_view: bool) -> int:
    """The smallest threshold that is secure with k neighbours."""
    for t in range(2, k + 1):
        if _rare(sites, bad, k, 2 * t - k if split_view else t, _EVENT):
            return t
    return k + 1


def _rare(sites: int, marked: int, k: int, least: int, bits: int) -> bool:
    """Whether sites * P[at least `least` of k neighbours are marked] <= 2^-bits."""
    if least <= 0:
        return False
    others = sites - 1
    tail = sum(
        math.comb(marked, hits) * math.comb(others - marked, k - hits)
        for hits in range(least, min(k, marked) + 1)
    )
    return sites * tail << bits <= math.comb(others, k)


def _connected(sites: int, removed: int, k: int) -> bool:
    """Whether two arcs of k/2 sites are both removed with probability at most 2^-41."""
    if k > removed:
        return True
    pairs = math.comb(sites, 2)
    both = math.comb(sites - k, removed - k)
    return pairs * both << _EVENT <= math.comb(sites, removed)


class Graph:
    """The neighbours in a round: `sites` in a circle, in an order drawn from a public `seed`."""

    def __init__(self, sites: int, neighbours: int, seed: bytes) -> None:
        self._sites = sites
        self._reach = neighbours // 2
        self.complete = neighbours >= sites - 1
        self._order: list[int] = []
        self._place: dict[int, int] = {}
        if not self.complete:
            # Ordered by hash, so the order does not depend on any library's random generator.
            marks = [
                hashlib.sha256(seed + site.to_bytes(4, "big")).digest() for site in range(sites)
            ]
            self._order = sorted(range(sites), key=marks.__getitem__)
            self._place = {site: place for place, site in enumerate(self._order)}

    def of(self, site: int) -> list[int]:
        """The neighbours of `site`, sorted."""
        if self.complete:
            return [other for other in range(self._sites) if other != site]
        here, count = self._place[site], self._sites
        steps = [step for step in range(-self._reach, self._reach + 1) if step]
        return sorted(self._order[(here + step) % count] for step in steps)
