"""With lists that differ from site to site, a sum has less noise than the accountant counts.

Under `distributed` each site adds a share of the noise. The accountant counts the shares of the
sites that must survive and do not collude. Where lists are believed, the coordinator uncovers an
update with its site's own share only, and on a ring the sum over an arc with the shares of that arc
only; ours reveal nothing but the sum over one agreed list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from fedsight.privacy.secagg.graph import Parameters, colluding
from fedsight.privacy.secagg.masks import Residues
from fedsight.privacy.secagg.messages import Lists
from fedsight.program.program import Program

SITES, FEW, TARGET = 20, range(1, 11), 0
PROGRAM = federations.program(
    privacy={"name": "distributed", "noise_multiplier": 4.0},
    secure={"name": "secagg", "corrupt": 0.0, "dropout": 0.3},
    rounds={"weighting": "uniform"},
)
GIVEN = PROGRAM.secure.parameters(SITES)


def noisy(attacker: MaliciousCoordinator, of: Program) -> tuple[float, float]:
    """Everybody deals shares, and has an update of zeros with its share of the noise.

    Returns the standard deviations of a site's noise, and of a sum's as it is accounted.
    """
    sites = len(attacker.clients)
    plan = encoding_plan_of(of, {"delta": LENGTH}, 1, partial(Noise, 1))
    quantiser = plan.quantiser(sites)
    for site in range(sites):
        zero = {"delta": torch.zeros(LENGTH)}
        name = f"site-{site}"
        attacker.updates[site] = quantiser.encode(zero, 1, name, 0, 1, partial(Noise, 1))
    attacker.advertise()
    attacker.deal(range(sites))
    return quantiser.deviation, quantiser.deviation * plan.accounted(sites).honest ** 0.5


def attack(heard: Sequence[int]) -> tuple[MaliciousCoordinator, float, float]:
    """A round up to the lists, in which the target has heard of some sites only."""
    assert GIVEN.survivors - colluding(SITES, 0.0) == 14
    attacker = MaliciousCoordinator(binding(SITES, GIVEN))
    share, accounted = noisy(attacker, PROGRAM)
    for site in range(SITES):
        attacker.mask(site, heard if site == TARGET else None)
    return attacker, share, accounted


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


# A hundred sites on a ring, where the accountant counts 56 shares: the graph that 100 sites would
# have if they needed none that is complete, for 10 colluders and 34 that drop out.
MANY, ARC = 100, 22
LARGE = federations.program(
    privacy={"name": "distributed", "noise_multiplier": 4.0},
    secure={"name": "secagg", "corrupt": 0.1, "dropout": 0.34},
    rounds={"weighting": "uniform"},
)
RING = Parameters(32, 22, 66, window=6, committee=31, signatures=21)


def on_a_ring() -> tuple[MaliciousCoordinator, list[int], float, float]:
    """A round up to the lists, and the sites of an arc."""
    plan = encoding_plan_of(LARGE, {"delta": LENGTH}, 1, partial(Noise, 1))
    assert plan.accounted(MANY).honest == RING.survivors - colluding(MANY, 0.1) == 56
    attacker = MaliciousCoordinator(binding(MANY, RING))
    share, accounted = noisy(attacker, LARGE)
    for site in range(MANY):
        attacker.mask(site)
    return attacker, attacker.binding.graph.order[:ARC], share, accounted


def around(attacker: MaliciousCoordinator, arc: Sequence[int]) -> Mapping[int, Lists]:
    """Lists by which all sites that have masks with the arc dropped out, a few for each site."""
    graph = attacker.binding.graph
    border = {other for site in arc for other in graph.of(site)} - set(arc)
    gone: dict[int, set[int]] = {site: set() for site in range(MANY)}
    for site in border:
        idle = sorted(graph.of(site), key=lambda other: len(gone[other]))
        for holder in idle[: RING.threshold]:
            gone[holder].add(site)
    assert max(map(len, gone.values())) <= MANY - RING.survivors
    return {site: lists(MANY, some) for site, some in gone.items()}


def test_an_arc_has_22_shares_of_noise_instead_of_56_where_lists_are_believed() -> None:
    attacker, arc, share, accounted = on_a_ring()
    untrue = dict(around(attacker, arc))
    everybody_refuses(attacker, untrue)
    for site, told in untrue.items():
        attacker.learn(site, as_told(attacker.clients[site], attacker.request(site, told)))
    found = attacker.take_masks_off(arc)
    total = np.sum([attacker.updates[site] for site in arc], axis=0, dtype=np.uint32)
    assert np.array_equal(found, total)
    assert ARC * share**2 < 0.4 * accounted**2
    assert spread(found) < 0.8 * accounted
