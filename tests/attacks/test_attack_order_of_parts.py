"""Parts of an update that a site is told to send in another order than the others.

Keys are bound to the names and lengths of the parts, which have no order there. The order stands in
the request to train, and each site gets its own. The coordinator has all sites but one put a part
of a single value before the update, so their values move by one place. In its model every second
unit is dead, so a place that the one site fills is empty at the others, and the sum there is the
one's update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, Model, known
from masked_round import MaskedRound, in_the_clear, joined_sites
from torch import Tensor

from fedsight.core.types import Order
from fedsight.deploy.site import secagg_client
from fedsight.privacy.mechanisms.central import BELOW, CLIP
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
TARGET = 0
UNITS = 200
# A site also sends whether its update is within the clip: a second part, without memory.
PRIVACY = {"name": "central", "quantile": 0.5, "clip": 1000.0, "noise_multiplier": 1.0}


def begin(attack: Attack, tmp_path: Path) -> tuple[MaskedRound, Program, Tensor]:
    """A round, and which places of the update belong to live units of the last hidden layer."""
    sites, of = joined_sites(attack, tmp_path, NAMES, privacy=PRIVACY)
    federation = known(of)
    bias = torch.zeros(UNITS)
    bias[1::2] = -1e6
    model = Model(federation).set("hidden1.bias", bias)
    (head,) = (one for one in federation.layout.entries if one.name == "head.weight")
    live = torch.arange(head.start, head.stop).view(-1, UNITS)[:, ::2].reshape(-1)
    order = Order(1, model.travelling, {CLIP: torch.tensor([1000.0])})
    return MaskedRound(sites, of, order), of, live


def another_order(attacker: MaskedRound) -> Mapping[str, Any]:
    """The round's quantiser with its parts the other way round; equal as a table."""
    table = dict(attacker.header["quantiser"])  # type: ignore[call-overload]
    turned = {**table, "sizes": dict(reversed(table["sizes"].items()))}
    assert turned == table
    assert next(iter(turned["sizes"])) == BELOW
    return turned


def any_order(of: Program, quantiser: Mapping[str, Any]) -> dict[str, int]:
    """The weakened build: parts are sent as they come."""
    return dict(quantiser["sizes"])


def test_the_sum_is_one_update_where_sites_send_parts_in_any_order(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secagg_client, "_sizes", any_order)
    attacker, of, live = begin(attack, tmp_path)
    turned = another_order(attacker)
    updates = [attacker.train(TARGET)]
    updates += [attacker.train(n, quantiser=turned) for n in (1, 2)]
    found = attacker.sum(updates)["delta"][live]
    target = in_the_clear(attacker.sites[TARGET], of, attacker.order)[live]
    assert (target.abs() > 1e-4).sum() > 50
    assert (found - target).abs().max() < 1e-6


def test_ours_send_parts_in_the_programs_order(attack: Attack, tmp_path: Path) -> None:
    attacker, of, _ = begin(attack, tmp_path)
    turned = another_order(attacker)
    with pytest.raises(ValueError, match=r"the round's parts are .* and this site sends delta"):
        attacker.train(1, quantiser=turned)
    found = attacker.sum([attacker.train(n) for n in range(3)])["delta"]
    everybody = [in_the_clear(site, of, attacker.order) for site in attacker.sites]
    assert (found - sum(everybody)).abs().max() < 1e-6
