"""Draws of training that everybody knows tell in a sum which values are whose.

Dropout leaves the weights of a unit to the images that did not drop it. If it follows from the
program's seed, the coordinator computes who did: with a rate of its choice, it finds units that
only one site kept, in only one of its images even. In the masked sum their weights' gradients are
that site's alone, exactly, however many sites there are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked_site import AttackedSite, known
from masked_round import MaskedRound, in_the_clear, joined_sites
from torch import Tensor
from torch.nn import functional as F

from fedsight.client.step import Client
from fedsight.core.rng import derive
from fedsight.core.types import Order
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
TARGET = 0
IMAGES, FEATURES, RATE = 6, 256, 0.95


def kept(of: Program, name: str) -> Tensor:
    """How many images of a site keep each unit [features], as far as the seed tells."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            derive(of.train_seed, *("round", 1, "site", name), "dropout")
        )
        return (F.dropout(torch.ones(IMAGES, FEATURES), RATE) > 0).sum(0)


def attacked(attack: Attack, tmp_path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """What the sum and the target's update, computed from the seed, have at the units [classes, u]
    that only the target keeps, and what the sum has at those that nobody keeps."""
    model = {"name": "small_cnn", "blocks": 1, "width": 16, "dropout": RATE}
    sites, of = joined_sites(attack, tmp_path, NAMES, model=model)
    federation = known(of)
    (head,) = (one for one in federation.layout.entries if one.name == "head.weight")
    attacker = MaskedRound(sites, of, Order(1, federation.initial))
    counts = torch.stack([kept(of, name) for name in NAMES])
    alone = (counts[TARGET] == 1) & (counts.sum(0) == 1)  # of one image of one site
    found = head.view(attacker.sum([attacker.train(n) for n in range(3)])["delta"])
    target = head.view(in_the_clear(sites[TARGET], of, attacker.order))
    return found[:, alone], target[:, alone], found[:, counts.sum(0) == 0]


def reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened build: training draws from the program's seed at every site."""
    begin = Client.__init__

    def weakened(client: Client, *given: object, **named: object) -> None:
        begin(client, *given, **{**named, "hides": False})  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "__init__", weakened)


def test_the_sum_shows_single_images_where_dropout_follows_from_the_seed(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproducible(monkeypatch)
    found, target, nobodys = attacked(attack, tmp_path)
    assert (target.abs() > 1e-4).sum() > 15
    assert (found - target).abs().max() < 1e-6
    assert nobodys.abs().max() < 1e-6


def test_ours_draw_what_nobody_knows(attack: Attack, tmp_path: Path) -> None:
    found, target, nobodys = attacked(attack, tmp_path)
    told = target.abs() > 1e-4  # the others are not active in the image
    assert ((found - target)[told].abs() < 1e-6).float().mean() < 0.2
    assert (nobodys.abs() > 1e-4).float().mean() > 0.1, "units that the seed says nobody keeps"
