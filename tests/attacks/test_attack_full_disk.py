"""How full a site is tells whether its training failed, unless what failed is remembered, too.

Under SCAFFOLD a site keeps a control variate for each round, and `contract.disk` limits what all of
them may occupy: beyond it the site refuses, and says so. A failed round that left no file behind
left room for another one. So a model that overflows at a bright pixel (`test_attack_errors.py`)
told of it again, without noise, through the next round's refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from test_attack_errors import overflowing

from fedsight.client.step import Client
from fedsight.core.types import Reply
from fedsight.deploy.site.memories import occupied
from fedsight.governance.contract import GIGABYTE
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
BRIGHT, OTHERWISE = 200, 150  # of one pixel; all others are below 100
CONTRACT = {"require": ["local_dp"], "min_noise_multiplier": 8.0}


def scaffold(images: Path) -> Program:
    privacy = {"name": "local", "noise_multiplier": 8.0}
    return program(images, privacy=privacy, algorithm={"name": "scaffold"}, rounds={"rounds": 3})


def images(folder: Path, grey: int) -> Path:
    found = noise_images(6)
    found[3][2, 5] = grey
    return draw(folder, found)


def ask(site: AttackedSite, of: Program) -> bool:
    """Whether a pixel of 175 or more is there: a trap, and a question about the room that is left.

    Returns whether there was any.
    """
    federation = known(of)
    trap, control = (
        overflowing(Model(federation), 175),
        {"control": torch.zeros(federation.layout.shared.stop)},
    )
    site.join(of)
    fields, _ = site.train(trap, control, 1)
    assert "error" not in fields
    fields, _ = site.train(trap, control, 2)
    return "error" not in fields


def room_for_one(attack: Attack, root: Path) -> float:
    """Gigabytes that the memory of one round is too much for, measured at home."""
    data = images(root / "home", OTHERWISE)
    site, of = attack("home-site", data, **CONTRACT), scaffold(data)
    ask(site, of)
    size = known(of).layout.shared.stop * 4
    return (occupied(site.home) - 1.5 * size) / GIGABYTE


def answers(attack: Attack, root: Path, tag: str) -> list[bool]:
    """What sites with and without the bright pixel answer."""
    contract, found = {**CONTRACT, "disk": room_for_one(attack, root)}, []
    for grey in (BRIGHT, OTHERWISE):
        data = images(root / str(grey), grey)
        found.append(ask(attack(f"{tag}-{grey}", data, **contract), scaffold(data)))
    return found


def test_a_round_that_leaves_no_memory_leaves_room(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = Client.blank

    def forgetful(self: Client, *given: Any) -> Reply:
        return replace(blank(self, *given), memory={})

    monkeypatch.setattr(Client, "blank", forgetful)
    assert answers(attack, tmp_path, "weak") == [True, False]


def test_a_failure_leaves_as_much_behind(attack: Attack, tmp_path: Path) -> None:
    assert answers(attack, tmp_path, "ours") == [False, False]
