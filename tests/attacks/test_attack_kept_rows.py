"""A site that keeps what frozen layers make of its images, and meets it again with other weights.

Rows that were kept are used again for the same images and layers. Whether the layers are the same
was judged by their own weights, and by what they make of a few random images. A tensor that the
network holds itself, such as the position embedding of a vision transformer, is in no layer; and a
coordinator chooses weights under which it shows in no random image: a first layer that looks for
edges makes values so large that what is added to them is lost, except where an image is black.

It has one site compute its rows with an embedding that lets the network learn, leaves that attempt,
and begins another with an embedding that does not. All sites have keys for the second. The others
learn nothing, and the sum is the update of the one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite, draw, known, program
from masked_round import MaskedRound
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.types import Order
from fedsight.deploy.declaration import open_site
from fedsight.deploy.site.owner import read_owner
from fedsight.program import kept
from fedsight.program.federation import Federation
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES, SIDE = ("a", "b", "c"), 32
LEARNS = "blocks.0.attn.qkv.weight"


@pytest.fixture(autouse=True)
def nothing_kept_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_latest", [])


def images(number: int) -> list[np.ndarray]:
    """Images [32, 32] with a black quarter, as scans have."""
    found = np.random.default_rng(number).integers(20, 200, (6, SIDE, SIDE)).astype(np.uint8)
    found[:, : SIDE // 2, : SIDE // 2] = 0
    return list(found)


def begin(attack: Attack, root: Path) -> tuple[list[AttackedSite], Program]:
    folders = [draw(root / f"images-{name}", images(at)) for at, name in enumerate(NAMES)]
    require = {"require": ["secure_aggregation"]}
    sites = [attack(name, of, **require) for name, of in zip(NAMES, folders, strict=True)]
    of = program(
        folders[0],
        data={"size": SIDE},
        model={"name": "timm", "architecture": "test_vit"},
        train={"only": [LEARNS], "lr": 10.0},
        secure={"name": "secagg"},
    )
    for site in sites:
        assert "error" not in site.join(of)
    return sites, of


def weights(federation: Federation, alive: bool) -> Tensor:
    """Edges, an embedding under which the network learns or does not, and nothing else."""
    vector = federation.initial.clone()
    part = {entry.name: entry.view(vector) for entry in federation.layout.entries}
    edges = torch.zeros(1, 1, 16, 16)
    edges[..., 7, 7:9] = torch.tensor([2.0**40, -(2.0**40)])
    part["patch_embed.proj.weight"].copy_(edges.expand(64, 1, 16, 16))
    part["patch_embed.proj.bias"].zero_()
    draws = torch.Generator().manual_seed(1)
    # Layer normalisation makes zeros of what is the same in all channels.
    places = torch.randn(4, 64, generator=draws) if alive else torch.ones(4, 64)
    part["pos_embed"].zero_()[:, 1:] = places
    for name, value in part.items():  # only the first attention adds anything
        if name.startswith("blocks.") and (".fc2." in name or ".attn.proj." in name):
            value.mul_(name.startswith("blocks.0.attn"))
    return vector


def sum_and_update(sites: Sequence[AttackedSite], of: Program) -> tuple[Tensor, Tensor]:
    """The masked sum of a round for the second weights; the first site's update for the first."""
    federation = known(of)
    layout = federation.layout
    alive, dead = (weights(federation, alive) for alive in (True, False))
    order = Order(1, alive[layout.travelling].clone())
    assert torch.equal(order.vector, dead[layout.travelling])
    sites[0].adopt(alive[layout.kept])
    MaskedRound(sites, of, order, alive[layout.kept]).train(0)  # an attempt that nobody finishes
    for site in sites:
        site.adopt(dead[layout.kept])
    round = MaskedRound(sites, of, order, dead[layout.kept], serial=2)
    found = round.sum([round.train(number) for number in range(len(sites))])["delta"]
    owner = read_owner(sites[0].home / "owner.toml", None)
    own, number = open_site(of, owner, sites[0].home.name)
    client = Client(own)
    client.adopt(alive[layout.kept])
    return found, client.step(order, number, {}).payload["delta"]


def of_the_layers(one: kept._Latest, other: kept._Latest) -> bool:
    """The weakened build: the weights of the layers that need not run, and random images."""
    layers = [name for name in one.tensors if name.startswith("patch_embed.")]
    same = all(one.tensors[name] == other.tensors[name] for name in layers)
    return same and one.facts == other.facts


def test_the_sum_is_one_update_where_rows_of_other_weights_are_met_again(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept._Latest, "same", of_the_layers)
    found, target = sum_and_update(*begin(attack, tmp_path))
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < target.abs().max() / 30


def test_ours_trains_from_the_weights_that_its_keys_were_made_for(
    attack: Attack, tmp_path: Path
) -> None:
    found, target = sum_and_update(*begin(attack, tmp_path))
    assert found.abs().max() < target.abs().max() / 30
