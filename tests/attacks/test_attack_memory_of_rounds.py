"""Sites with different memories are told apart in one masked sum.

The coordinator leaves one site out of a round, in which it sends the others a model with enormous
gradients. SCAFFOLD keeps them as control variates. In the next round, with the same order for all,
the others' training overflows, so they contribute zeros, and the sum is the update of the one. The
order, the adopted values and the number of the round are in the binding; what a memory holds cannot
be. So a site that requires secure aggregation, and nothing else, takes part without memory only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program, values
from masked_round import MaskedRound, in_the_clear, sum_where_one_remembers_nothing

from fedsight.core.types import Order
from fedsight.program.facts import Facts
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c", "d")
# FedBN keeps the norm at the site. No tensor of the sketch by which a program is judged before its
# network is built has a name of these.
NAMED = {
    "algorithm": {"name": "fedbn"},
    "model": {"name": "small_cnn", "width": 4, "blocks": 1},
    "train": {"only": ["conv0", "norm0.weight", "head.weight"], "batch": 8},
    "secure": {"name": "secagg"},
}


def begin(
    attack: Attack, tmp_path: Path, algorithm: str, **contract: object
) -> tuple[list[AttackedSite], Program]:
    folders = [
        draw(tmp_path / f"images-{name}", noise_images(6, number))
        for number, name in enumerate(NAMES)
    ]
    require = {"require": ["secure_aggregation"], **contract}
    sites = [attack(name, of, **require) for name, of in zip(NAMES, folders, strict=True)]
    named, twice = {"name": algorithm}, {"epochs": 2}  # two steps
    return sites, program(folders[0], secure={"name": "secagg"}, algorithm=named, train=twice)


def test_the_sum_is_one_update_where_sites_remember_different_rounds(
    attack: Attack, tmp_path: Path
) -> None:
    sites, of = begin(attack, tmp_path, "scaffold", masked_memory=True)
    for site in sites:
        assert "error" not in site.join(of)
    found, target = sum_where_one_remembers_nothing(sites, of)
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < 1e-7


@pytest.mark.parametrize("algorithm", ["scaffold", "fedrep"])
def test_ours_take_no_part_in_a_program_with_memory(
    attack: Attack, tmp_path: Path, algorithm: str
) -> None:
    sites, of = begin(attack, tmp_path, algorithm)
    assert "contract.masked_memory: the program keeps memory" in sites[0].join(of)["error"]


def test_noise_that_the_sites_add_allows_memory(attack: Attack, tmp_path: Path) -> None:
    noise = {"require": ["secure_aggregation", "distributed_dp"], "min_noise_multiplier": 1.0}
    sites, of = begin(attack, tmp_path, "fedrep", **noise)
    privacy = {"name": "distributed", "noise_multiplier": 1.0}
    of = program(
        tmp_path / "images-a",
        secure={"name": "secagg"},
        algorithm={"name": "fedrep"},
        privacy=privacy,
    )
    assert "error" not in sites[0].join(of)


def sites_of(attack: Attack, tmp_path: Path) -> tuple[list[AttackedSite], Program]:
    """Sites that require secure aggregation, and a program whose memory only its network shows."""
    sites, _ = begin(attack, tmp_path, "fedavg")
    return sites, program(tmp_path / "images-a", **NAMED)


def test_the_sum_is_one_update_where_memory_is_judged_by_a_sketch_of_the_network(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Facts.of
    monkeypatch.setattr(Facts, "of", lambda program, network=None: judged(program))
    sites, of = sites_of(attack, tmp_path)
    for site in sites:
        assert "error" not in site.join(of)
    federation = known(of)
    head = torch.tensor([[1.0], [-1.0]]).expand(2, 64)
    poison = Model(federation).set("head.weight", head * 1e34)
    first = MaskedRound(sites[1:], of, Order(1, poison.travelling))
    for number in range(3):
        first.train(number)
    trap = Model(federation).set("head.weight", head * 1e6).travelling
    second = MaskedRound(sites, of, Order(2, trap), serial=2)
    found = second.sum([second.train(number) for number in range(4)])["delta"]
    target = in_the_clear(sites[0], of, second.order)
    assert target.abs().max() > 1e-3
    assert (found - target.clamp(-1, 1)).abs().max() < 1e-6


def test_ours_judge_memory_by_the_network(attack: Attack, tmp_path: Path) -> None:
    sites, of = sites_of(attack, tmp_path)
    assert not Facts.of(of).remembers
    assert "contract.masked_memory: the program keeps memory" in sites[0].join(of)["error"]


def test_what_is_durable_does_not_change_what_a_site_remembers_of_earlier_rounds(
    attack: Attack, tmp_path: Path
) -> None:
    """The last durable round is said to each site, and no key is bound to it."""
    images = draw(tmp_path / "images", noise_images(6))
    of = program(images, algorithm={"name": "scaffold"})
    honest = known(of).initial
    control = {"control": torch.zeros_like(honest)}
    asked = {"kept": (3, 0), "durable": (3, 3), "forgotten": (0, 0)}
    found = {}
    for name, (accepted, durable) in asked.items():
        site = attack(name, images)
        site.join(of)
        for number in (1, 2, 3):
            site.train(honest, control, number)
        again = site.train(honest, control, 2, accepted=accepted, durable=durable)
        found[name] = values(again[1])
    assert (found["kept"] - found["forgotten"]).abs().max() > 1e-3
    assert (found["kept"] - found["durable"]).abs().max() < 1e-5
