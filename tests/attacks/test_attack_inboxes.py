"""Lists that all sites agree on may still be chosen badly; three ways to get more than one sum.

The ring has 24 sites with four neighbours on either side, and the threshold is as for an
honest-but-curious coordinator: the higher one of `split_view` makes two of the attacks harder.
Each attack gets a part of the sum where the check that stops it is taken away, and nothing from
ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from secagg_rounds import MaliciousCoordinator, binding, lists, update

from fedsight.core.errors import SiteError
from fedsight.privacy.secagg import consistency
from fedsight.privacy.secagg.graph import Graph, Parameters
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secagg.messages import Binding, Lists

SITES = 24
RING = Parameters(8, threshold=4, survivors=16, window=1, committee=SITES, signatures=13)


def dealt() -> MaliciousCoordinator:
    """All sites have dealt their shares."""
    found = MaliciousCoordinator(binding(SITES, RING))
    found.advertise()
    found.deal(range(SITES))
    return found


def collect(attacker: MaliciousCoordinator, told: Lists, asked: Iterable[int]) -> None:
    """Have the committee sign, and collect the shares of `asked`."""
    for site in sorted(attacker.binding.committee & set(asked)):
        if site not in attacker.agreed:
            attacker.agree(site, told)
    for site in asked:
        answer = attacker.clients[site].unmask(attacker.request(site, told))
        attacker.learn(site, answer)


def nobody_answers(
    attacker: MaliciousCoordinator, told: Lists, asked: Iterable[int], why: str
) -> None:
    """None of these signs or reveals anything."""
    for site in asked:
        if site in attacker.binding.committee:
            with pytest.raises(SiteError, match=why):
                attacker.agree(site, told)
        with pytest.raises(SiteError, match=why):
            attacker.clients[site].unmask(attacker.request(site, told))


def plain(sites: Iterable[int]) -> Residues:
    return np.sum([update(site) for site in sites], axis=0, dtype=np.uint32)


def test_two_arcs_that_drop_out_cut_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    attacker = dealt()
    ring = attacker.binding.graph.order
    gone, parts = [*ring[:4], *ring[12:16]], (ring[4:12], ring[16:])
    told, left = lists(SITES, gone), [*parts[0], *parts[1]]
    for site in left:
        attacker.mask(site)
    nobody_answers(attacker, told, left, "of 4 consecutive sites of the graph, at least 1")
    monkeypatch.setattr(Graph, "thinnest", lambda *_: SITES)  # as if nobody looked
    collect(attacker, told, left)
    for part in parts:
        assert np.array_equal(attacker.take_masks_off(part), plain(part))


def test_halves_that_do_not_hear_of_each_other_have_sums_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attacker = dealt()
    ring = attacker.binding.graph.order
    halves = ring[:12], ring[12:]
    for half in halves:
        for site in half:
            attacker.mask(site, half)
    told = lists(SITES, ())
    deaf = [s for s in ring if set(attacker.binding.graph.of(s)) != attacker.inbox[s]]
    assert len(deaf) == 16
    nobody_answers(attacker, told, deaf, "the lists are not those of its inbox")

    def anything(binding: Binding, site: int, _: Lists) -> set[int]:
        return attacker.inbox[site]

    monkeypatch.setattr(consistency, "_inbox", anything)  # as if nobody compared it with the lists
    collect(attacker, told, ring)
    for half in halves:
        assert np.array_equal(attacker.take_masks_off(half), plain(half))


def test_a_site_that_hears_only_of_drop_outs_is_uncovered_by_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target itself is never asked, so only its neighbours can notice."""
    attacker = dealt()
    ring = attacker.binding.graph.order
    target, gone = ring[4], {*ring[2:4], *ring[5:7]}
    told = lists(SITES, gone)
    asked = sorted(told.survivors - {target})
    attacker.mask(target, gone)
    for site in asked:
        attacker.mask(site)
    for site in sorted(attacker.binding.committee & set(asked)):
        attacker.agree(site, told)
    near = set(attacker.binding.graph.of(target))
    for site in near & set(asked):
        with pytest.raises(SiteError, match="did not confirm the shares it should have received"):
            attacker.clients[site].unmask(attacker.request(site, told))
    monkeypatch.setattr(consistency, "confirming", lambda *_: set())  # as if nobody looked
    collect(attacker, told, asked)
    assert np.array_equal(attacker.take_masks_off([target]), update(target))
