"""Draws that everybody knows attribute what a sum of rounded updates tells to single sites.

The coordinator states an enormous largest weight, so every update is less than a level, and a value
is rounded up or down by its sign and its draw. Where the draws of all sites but one are far from
the edge, the sum tells which way that site's value was rounded, and so whether it exceeds a number
that the coordinator knows. Where the program's `secure.bits` are few, an honest weight does
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite, known
from masked_round import MaskedRound, in_the_clear, joined_sites

from fedsight.core.rng import generator
from fedsight.core.types import Order
from fedsight.governance.contract import Contract

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
CAP = 1 << 26  # updates of up to 1/32 are then within a quarter of a level
REACH = 0.25


def comparisons(attack: Attack, tmp_path: Path) -> tuple[int, float]:
    """How many values of site a's update were compared with a known number, and the share of the
    comparisons that are right."""
    sites, of = joined_sites(attack, tmp_path, NAMES)
    order = Order(1, known(of).initial)
    attacker = MaskedRound(sites, of, order, cap=CAP)
    top = (1 << attacker.quantiser.bits) - 1
    ups = attacker.levels([attacker.train(n) for n in range(3)]).astype(np.int64) - 3 * (top // 2)
    edge = {}  # a value is rounded up if it exceeds this, in levels
    for name in NAMES:
        made = generator(of.seed, "round", 1, "site", name, "rounding")
        edge[name] = 0.5 - torch.rand(len(ups), generator=made, dtype=torch.float64).numpy()
    others = [edge[name] for name in NAMES[1:]]
    alone = np.all([np.abs(one) > REACH for one in others], axis=0) & (np.abs(edge["a"]) < REACH)
    found = ups - np.sum([one < 0 for one in others], axis=0) > 0
    value = in_the_clear(sites[0], of, order).numpy().astype(np.float64) / CAP * top / 2
    assert np.abs(value).max() < REACH
    alone &= value != 0
    right = (value >= edge["a"]) == found
    return int(alone.sum()), float(right[alone].mean())


def test_the_sum_tells_about_single_values_where_the_draws_are_known(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contract, "protected", False)
    count, right = comparisons(attack, tmp_path)
    assert count > 1000
    assert right == 1.0


def test_ours_round_by_draws_of_their_own(attack: Attack, tmp_path: Path) -> None:
    count, right = comparisons(attack, tmp_path)
    assert count > 1000
    assert right < 0.6
