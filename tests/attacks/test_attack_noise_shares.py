"""With lists that differ from site to site, a sum has less noise than the accountant counts.

Under `distributed` each site adds a share of the noise. The accountant counts the shares of the
sites that must survive and do not collude. Where lists are believed, the coordinator uncovers an
update with its site's own share only; ours reveal nothing but the sum over one agreed list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import federations
import numpy as np
import torch
from secagg_rounds import (
    LENGTH,
    MaliciousCoordinator,
    as_told,
    binding,
    everybody_refuses,
    lies,
    lists,
)

from fedsight.engines.protected import encoding_plan_of
from fedsight.privacy.noise import Noise
from fedsight.privacy.secagg.graph import colluding
from fedsight.privacy.secagg.masks import Residues

SITES, FEW, TARGET = 20, range(1, 11), 0
PROGRAM = federations.program(
    privacy={"name": "distributed", "noise_multiplier": 4.0},
    secure={"name": "secagg", "corrupt": 0.0, "dropout": 0.3},
    rounds={"weighting": "uniform"},
)
GIVEN = PROGRAM.secure.parameters(SITES)


def attack(heard: Sequence[int]) -> tuple[MaliciousCoordinator, float, float]:
    """A round up to the lists, in which the target has heard of some sites only.

    All updates are zero, so what a site sends is its noise. Also returns the standard deviations of
    a site's noise, and of a sum's as it is accounted.
    """
    plan = encoding_plan_of(PROGRAM, {"delta": LENGTH}, 1, partial(Noise, 1))
    quantiser = plan.quantiser(SITES)
    accounted = plan.accounted(SITES)
    assert accounted.honest == GIVEN.survivors - colluding(SITES, 0.0) == 14
    attacker = MaliciousCoordinator(binding(SITES, GIVEN))
    for site in range(SITES):
        zero = {"delta": torch.zeros(LENGTH)}
        name = f"site-{site}"
        attacker.updates[site] = quantiser.encode(zero, 1, name, 0, 1, partial(Noise, 1))
    attacker.advertise()
    attacker.deal(range(SITES))
    for site in range(SITES):
        attacker.mask(site, heard if site == TARGET else None)
    share = quantiser.deviation
    return attacker, share, share * accounted.honest**0.5


def spread(words: Residues) -> float:
    """The standard deviation of noised levels around their middle."""
    return float(np.std(words.astype(np.int32).astype(np.float64)))


def test_an_update_comes_out_with_a_single_share_of_the_noise_where_lists_are_believed() -> None:
    attacker, share, accounted = attack(FEW)
    for site, told in lies(SITES, FEW, 6).items():
        attacker.learn(site, as_told(attacker.clients[site], attacker.request(site, told)))
    found = attacker.take_masks_off([TARGET])
    assert np.array_equal(found, attacker.updates[TARGET])
    assert 0.6 * share < spread(found) < 1.5 * share < 0.5 * accounted


def test_ours_reveal_nothing_for_such_lists() -> None:
    attacker, _, _ = attack(FEW)
    everybody_refuses(attacker, lies(SITES, FEW, 6))


def test_the_sum_over_the_agreed_list_has_all_the_noise_that_is_accounted() -> None:
    attacker, _, accounted = attack(range(SITES))
    left = range(GIVEN.survivors)  # as few as may survive
    told = lists(SITES, range(GIVEN.survivors, SITES))
    for site in left:
        attacker.agree(site, told)
    for site in left:
        attacker.learn(site, attacker.clients[site].unmask(attacker.request(site, told)))
    assert spread(attacker.take_masks_off(left)) > 0.6 * accounted
