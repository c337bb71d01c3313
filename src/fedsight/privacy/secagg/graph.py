"""Who masks with whom, and how many shares a secret takes.

Up to `COMPLETE` sites everybody is everybody's neighbour. Above, the sites stand in a circle in an
order that is drawn for the round, and each has the k sites next to it as neighbours (a Harary
graph; Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead", CCS).

In the complete graph a site holds a share of its own seed too: whoever drops out, as many shares
of every secret are left as there are survivors.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

from fedsight.core.errors import SiteError

COMPLETE = 100  # sites up to which the graph is complete
SECURITY = 40  # bits: an attack succeeds with probability 2^-40 at most
_EVENT = (
    SECURITY + 1
)  # bits: it has two ways, a captured neighbourhood and a graph that falls apart
FAILURE = 20  # bits: more drop-outs than a neighbourhood bears come with probability 2^-20 at most
FEWEST = 3  # sites: in a sum of two, each knows the other's part


@dataclass(frozen=True)
class Parameters:
    """The graph of a round: `neighbours` k, shares that make a secret t, survivors at least m."""

    neighbours: int
    threshold: int
    survivors: int


def colluding(sites: int, corrupt: float) -> int:
    """How many of so many sites collude with the coordinator at most, at this rate."""
    return math.floor(corrupt * sites + 1e-9)


@lru_cache(maxsize=64)
def parameters(
    sites: int, corrupt: float, dropout: float, split_view: bool, complete: int = COMPLETE
) -> Parameters:
    """The smallest k and t that are secure and robust at the given rates, for `sites` sites.

    At most `colluding` sites collude with the coordinator and ceil(dropout * sites)
    drop out. Secure: no site's neighbourhood holds so many colluders that they, with the
    coordinator, learn a site's seed and its mask key both. An honest-but-curious coordinator needs
    t shares from colluders, X >= t. With `split_view`, one may tell each honest neighbour
    something else, and each answers for one of the two secrets: both are learnt when k + X >= 2t.
    Robust: at least t of a site's neighbours survive. Both over all sites by a union bound on
    hypergeometric tails, in exact integers (after Bell et al. 2020, section 3). The graph of the
    honest survivors is connected unless two arcs of k/2 sites each are gone as a whole. Each of
    the two ways to fail may have probability 2^-41.

    Raises SiteError when no choice is both.
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
            f"among {sites} sites of which {bad} collude and {gone} drop out, no threshold is "
            "both secure and survivable",
            "lower secure.corrupt or secure.dropout to what you mean to withstand, or let more "
            "sites take part",
        )
    k, t = found
    strict = split_view or sites > complete  # then security leans on the stated drop-out rate
    return Parameters(k, t, max(t, sites - gone) if strict else t)


def _whole(sites: int, bad: int, gone: int, split_view: bool) -> tuple[int, int] | None:
    """The complete graph: whatever is drawn, everybody has the same neighbours."""
    k = sites - 1
    # With its own share, a site's seed has k + 1 holders.
    t = max(2, (sites + bad) // 2 + 1 if split_view else bad + 1)
    return (k, t) if sites - gone >= t else None


def _sparse(sites: int, bad: int, gone: int, split_view: bool) -> tuple[int, int] | None:
    """The smallest even k, and for it the smallest t."""
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
    """Whether two arcs of k/2 sites are both removed with probability 2^-41 at most."""
    if k > removed:
        return True
    pairs = math.comb(sites, 2)
    both = math.comb(sites - k, removed - k)
    return pairs * both << _EVENT <= math.comb(sites, removed)


class Graph:
    """The neighbours of a round: `sites` in a circle in the order drawn from a public `seed`."""

    def __init__(self, sites: int, neighbours: int, seed: bytes) -> None:
        self._sites = sites
        self._reach = neighbours // 2
        self.complete = neighbours >= sites - 1
        self._order: list[int] = []
        self._place: dict[int, int] = {}
        if not self.complete:
            # By hash, not by a generator: every version of every library draws the same order.
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
