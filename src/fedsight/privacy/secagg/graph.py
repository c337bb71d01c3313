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
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg.tails import least_rare

COMPLETE = 100  # sites up to which the graph is complete
SECURITY = 40  # bits: an attack succeeds with probability at most 2^-40
# bits: there are two attacks, a captured neighbourhood and a disconnected graph
_EVENT = SECURITY + 1
FAILURE = 20  # bits: a round fails because of too many drop-outs with probability at most 2^-20
FEWEST = 3  # sites: in a sum of two, each site can compute the other's update
HONEST = 2  # sites in a sum that do not collude: colluders take their own updates off it
GRINDING = 40  # bits: a program's default; what is drawn holds against 2^40 tries to draw it well


@dataclass(frozen=True)
class Parameters:
    """The graph of a round, and what its sites require before they reveal a share.

    `neighbours` k, `threshold` t of the shares, fewest `survivors`; fewest survivors in a `window`
    of k/2 consecutive places of the circle; how many sites the `committee` has whose signatures
    certify the lists of survivors, and how many `signatures` it takes.
    """

    neighbours: int
    threshold: int
    survivors: int
    window: int = 0
    committee: int = 0
    signatures: int = 0


def colluding(sites: int, corrupt: float) -> int:
    """The most of `sites` sites that collude with the coordinator, at rate `corrupt`."""
    return math.floor(corrupt * sites + 1e-9)


@lru_cache(maxsize=64)
def parameters(
    sites: int,
    corrupt: float,
    dropout: float,
    split_view: bool,
    grinding: int = 0,
    neighbours: int = 2,
) -> Parameters:
    """The smallest k, from `neighbours` on, and the smallest t for it that are secure and robust
    at the given rates, for `sites` sites.

    At most `colluding` sites collude with the coordinator, and ceil(dropout * sites) drop out.
    Secure: no neighbourhood contains so many colluders X that they and the coordinator learn both
    the seed and the mask key of a site. An honest-but-curious coordinator needs t shares from
    colluders, X >= t. With `split_view` the coordinator may tell each honest neighbour something
    different, and each answers for one of the two secrets: both are learnt if k + X >= 2t. Robust:
    at least t neighbours of a site survive. Both hold for all sites by a union bound on
    hypergeometric tails (`tails.py`; after Bell et al. 2020, section 3). The graph of the
    honest survivors is connected unless two whole arcs of k/2 sites each are missing. Each of the
    two ways to fail has probability at most 2^-41; with `split_view` and `grinding`, at most
    2^-(41 + grinding), because a coordinator that may choose the order of the circle out of
    2^grinding ones must not find a bad one among them either.

    With `split_view` a coordinator may also choose who "dropped out", so the lists are agreed on
    first (`consistency.py`): a committee signs them, and every window of the circle must hold
    enough survivors.

    In any sum there are `HONEST` or more updates of sites that do not collude.

    Raises SiteError if no choice is both secure and robust.
    """
    bad, gone = colluding(sites, corrupt), math.ceil(dropout * sites - 1e-9)
    if sites < FEWEST:
        raise SiteError(
            f"secure aggregation over {sites} sites hides nothing",
            f"let at least {FEWEST} sites take part in each round",
        )
    found = None
    if sites > COMPLETE:
        found = _sparse(sites, bad, gone, grinding if split_view else None, neighbours)
    # Rates that leave nothing to a sparse graph may still leave something to the complete one.
    found = found or _whole(sites, bad, gone, split_view)
    if found is None or sites - gone < bad + HONEST:
        raise SiteError(
            f"with {sites} sites, of which {bad} collude and {gone} drop out, no threshold is both "
            "secure and robust",
            "lower secure.corrupt or secure.dropout to what you need to withstand, or let more "
            "sites take part",
        )
    strict = split_view or sites > COMPLETE  # then security depends on the stated drop-out rate
    k, t, window, committee, signatures = found
    survivors = max(t, sites - gone) if strict else max(t, bad + HONEST)
    return Parameters(k, t, survivors, window, committee, signatures)


Found = tuple[int, int, int, int, int]  # k, t, window, committee, signatures


def _whole(sites: int, bad: int, gone: int, split_view: bool) -> Found | None:
    """The complete graph, if it is robust. All sites sign the lists."""
    k = sites - 1
    # Two lists signed by so many sites each would take more than `bad` sites that sign twice.
    # Together with the site itself, a seed has k + 1 holders, so t is the same number.
    majority = (sites + bad) // 2 + 1
    t = max(2, majority if split_view else bad + 1)
    if sites - gone < t:
        return None
    return (k, t, 0, sites, majority) if split_view else (k, t, 0, 0, 0)


def _sparse(sites: int, bad: int, gone: int, grinding: int | None, least: int) -> Found | None:
    """The smallest even k and the smallest t for it; `grinding` is None without a split view."""
    split_view, bits = grinding is not None, _EVENT + (grinding or 0)
    signers = _committee(sites, bad, gone, grinding or 0) if split_view else (0, 0)
    if signers is None:
        return None
    k = least + least % 2
    while k < sites - 1:
        colluders = least_rare(sites - 1, bad, k, sites, bits)  # every neighbourhood holds fewer
        t = max(2, -(-(k + colluders) // 2) if split_view else colluders)
        # With one neighbour more, `colluders` and the most that drop out stay as they are or grow
        # by one. So none of the numbers that are passed over here would do.
        lacking = least_rare(sites - 1, gone, k, sites, FAILURE) - (k - t + 1)
        if lacking > 0:
            k += _even(lacking if t == 2 or not split_view else 2 * lacking)
            continue
        if not _connected(sites, bad + gone, k):
            k += 2
            continue
        window = _window(sites, bad, k, bits) if split_view else 0
        lacking = least_rare(sites, gone, k // 2, sites, FAILURE) - (k // 2 - window + 1)
        if lacking <= 0:
            return k, t, window, *signers
        k += 2 * lacking
    return None


def _even(number: int) -> int:
    return number + number % 2


def _connected(sites: int, removed: int, k: int) -> bool:
    """Whether two arcs of k/2 sites are both removed with probability at most 2^-41."""
    return least_rare(sites, removed, k, math.comb(sites, 2), _EVENT) <= k


def _window(sites: int, bad: int, k: int, bits: int) -> int:
    """Fewest survivors in k/2 consecutive places that leave the honest ones connected.

    Two disjoint arcs of k/2 places hold at most `most` colluders, whichever they are. If each of
    them holds more than half of that many survivors, then one of these is honest. So there are no
    two arcs without an honest survivor, which is what it takes to cut the circle.
    """
    most = least_rare(sites, bad, k, math.comb(sites, 2), bits) - 1
    return most // 2 + 1


def _committee(sites: int, bad: int, gone: int, grinding: int) -> tuple[int, int] | None:
    """Members of the smallest committee, and how many of them must sign; None if there is none.

    Two different lists that T of c members signed take 2T - c members that signed both, and only
    colluders do. So many are drawn with probability at most 2^-40, even if the coordinator may pick
    one of 2^grinding committees; fewer than T are left with probability at most 2^-20.
    """
    members = 1
    while members <= sites:
        colluders = least_rare(sites, bad, members, 1, SECURITY + grinding)
        needed = -(-(members + colluders) // 2)
        lacking = least_rare(sites, gone, members, 1, FAILURE) - (members - needed + 1)
        if lacking <= 0:
            return members, needed
        # As in `_sparse`: of two members more, one signature more is needed at least.
        members += 2 * lacking - 1
    return None


def drawn(sites: int, purpose: bytes) -> list[int]:
    """All sites in an order that is drawn from `purpose`.

    They are sorted by hash, so the order does not depend on any library's random generator.
    """
    marks = [hashlib.sha256(purpose + site.to_bytes(4, "big")).digest() for site in range(sites)]
    return sorted(range(sites), key=marks.__getitem__)


class Graph:
    """The neighbours in a round: `sites` in a circle, in an order drawn from a public `seed`."""

    def __init__(self, sites: int, neighbours: int, seed: bytes) -> None:
        self._sites = sites
        self._reach = neighbours // 2
        self.complete = neighbours >= sites - 1
        self.order: list[int] = []  # the sites by their place; empty for a complete graph
        self._place: dict[int, int] = {}
        if not self.complete:
            self.order = drawn(sites, seed)
            self._place = {site: place for place, site in enumerate(self.order)}

    def of(self, site: int) -> list[int]:
        """The neighbours of `site`, sorted."""
        if self.complete:
            return [other for other in range(self._sites) if other != site]
        here, count = self._place[site], self._sites
        steps = [step for step in range(-self._reach, self._reach + 1) if step]
        return sorted(self.order[(here + step) % count] for step in steps)

    def thinnest(self, sites: Set[int]) -> int:
        """The fewest of `sites` in any k/2 consecutive places of the circle, if there is one."""
        if self.complete:
            return len(sites)
        there = [int(site in sites) for site in self.order]
        held = fewest = sum(there[: self._reach])
        for place in range(self._sites):  # the window that begins one place further
            held += there[(place + self._reach) % self._sites] - there[place]
            fewest = min(fewest, held)
        return fewest
