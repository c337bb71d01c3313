"""Sites that run different programs under one run's name: the others' learn nothing.

The coordinator proposes a program to one site, and the same with a learning rate of almost zero to
the others. The masked sum is the first one's update. Binding keys to the run's name is not enough,
because the coordinator chooses the name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program
from masked_round import MaskedRound, in_the_clear

from fedsight.core.types import Order
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
CONTRACT = {"require": ["secure_aggregation"]}


@pytest.fixture
def sites(attack: Attack, tmp_path: Path) -> list[AttackedSite]:
    return [
        attack(name, draw(tmp_path / f"images-{name}", noise_images(6, number)), **CONTRACT)
        for number, name in enumerate(NAMES)
    ]


def programs(images: Path) -> tuple[Program, Program]:
    """The target's, and one under which nobody learns."""
    secure = {"name": "secagg"}
    return program(images, secure=secure), program(images, secure=secure, train={"lr": 1e-30})


def test_the_sum_is_one_update_where_keys_are_bound_to_the_runs_name_only(
    sites: list[AttackedSite], tmp_path: Path
) -> None:
    honest, dead = programs(tmp_path / "images-a")
    order = Order(1, known(honest).initial)
    for site, of in zip(sites, (honest, dead, dead), strict=True):
        site.join(of)
    with mock.patch.object(Program, "fingerprint", property(lambda _: "the same")):
        attacker = MaskedRound(sites, honest, order)
    found = attacker.sum([attacker.train(n) for n in range(3)])["delta"]
    target = in_the_clear(sites[0], honest, order)
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < 1e-6


def test_ours_have_keys_for_one_program(sites: list[AttackedSite], tmp_path: Path) -> None:
    honest, dead = programs(tmp_path / "images-a")
    for site, of in zip(sites, (honest, dead, dead), strict=True):
        site.join(of)
    with pytest.raises(ValueError, match=r"keys .* are for the program .* takes part in"):
        MaskedRound(sites, honest, Order(1, known(honest).initial))
