"""Colluders that advertise copies of honest sites' keys, so that masks cancel within one update.

The key of a pair's mask came from the two public keys alone. A colluder that had seen the advert of
an honest site could sign the same mask key as its own. The target then had the very same mask with
both, added once and subtracted once where its number lies between theirs. With a colluder for each
honest neighbour nothing was left but its own mask, which comes off in the end. The coordinator
needs only to ask the colluders last: no other message differs from an honest round's.
"""

from __future__ import annotations

import numpy as np
import pytest
from secagg_rounds import MaliciousCoordinator, binding, identity, lists, update

from fedsight.privacy.secagg import client, masks
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import SEED, sign_part
from fedsight.privacy.secagg.keys import PUBLIC, KeyPair, derive
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secure import Secure

SITES, TARGET = 5, 2
COPIES = {0: 3, 1: 4}  # colluder: the honest site whose key it copies


def copied() -> MaliciousCoordinator:
    """A round of five sites whose graph and committee are made for two colluders."""
    parameters = Secure(corrupt=0.4, dropout=0.0).parameters(SITES)
    found = MaliciousCoordinator(binding(SITES, parameters))
    found.advertise()
    for thief, victim in COPIES.items():
        own, theirs = found.adverts[thief], found.adverts[victim]
        keys = own[:PUBLIC] + theirs[PUBLIC : 2 * PUBLIC] + own[2 * PUBLIC : m.KEYS]
        signature = identity(thief).sign(sign_part(found.binding.digest, thief, keys))
        found.adverts[thief] = keys + signature
    return found


def alone(attacker: MaliciousCoordinator) -> Residues:
    """The target's update with its own mask taken off, after a round that all sites agreed to."""
    attacker.deal(range(SITES))
    for site in range(SITES):
        attacker.mask(site)
    told = lists(SITES, ())
    for site in range(SITES):
        attacker.agree(site, told)
    for site in range(SITES):
        attacker.learn(site, attacker.clients[site].unmask(attacker.request(site, told)))
    seed = attacker._secret(TARGET, SEED)
    found = attacker.masked[TARGET].copy()
    masks.apply(found, [(derive(seed, attacker.binding.digest, b"fedsight self"), True)])
    return found


def by_keys_alone(own: KeyPair, public: bytes, digest: bytes, ends: tuple[int, int]) -> bytes:
    """As it was: the same secret made the same mask, whoever was at the other end."""
    return derive(own.agree(public), digest, b"fedsight mask")


def test_without_the_numbers_in_the_key_one_update_comes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "mask_key", by_keys_alone)
    assert np.array_equal(alone(copied()), update(TARGET))


def test_a_copied_key_makes_another_mask() -> None:
    left = alone(copied()) - update(TARGET)
    assert len(np.unique(left)) == len(left)  # 64 random words, as a mask is
    assert np.count_nonzero(left >> 24) > len(left) / 2
