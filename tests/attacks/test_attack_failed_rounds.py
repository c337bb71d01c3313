"""A failed round of a site that remembers is told from any other by what did not move its steps.

Under DP-SGD a protected site whose training failed takes the steps of noise alone. SCAFFOLD and
FedDyn add what the site remembers to every step, which the coordinator knows from before.
So a contribution in which it is missing says that training failed, which may depend on one image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program, values

from fedsight.client.step import Client

Attack = Callable[..., AttackedSite]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "scaffold": {"name": "scaffold"},
    "feddyn": {"name": "feddyn", "alpha": 1.0},
}
step, stepped = Client.step, Client._stepped


def forgetful(self: Client, order: Any, site: Any, memory: Any, blank: bool = False) -> Any:
    """As the first version was: a failed round without what the site remembers."""
    return stepped(self, order, site, {} if blank else memory, blank)


def echo(attack: Attack, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """How much of what the site remembers of a round is in the next one, which fails."""
    images = draw(tmp_path / "images", noise_images(6))
    of = program(
        images,
        algorithm=ALGORITHMS[name],
        privacy={"name": "example", "noise_multiplier": 1.0, "clip": 1.0},
        train={"batch": 8, "lr": 0.1, "epochs": 2},
    )
    site, federation = attack("oslo", images, epsilon=1000.0, require=["example_dp"]), known(of)
    site.join(of)
    vector, size = Model(federation).travelling, federation.layout.shared.stop
    extras = {"control": torch.zeros(size)} if name == "scaffold" else {}
    # What the site remembers of the first round: SCAFFOLD sends it, FedDyn's is the update's.
    first = values(site.train(vector, extras, round=1)[1])[-size:]

    def died(*_: Any) -> Any:
        raise RuntimeError("stands for a process that died")

    monkeypatch.setattr(Client, "step", died)
    second = values(site.train(vector, extras, round=2)[1])[:size]
    monkeypatch.setattr(Client, "step", step)
    return abs(float((second @ first) / (first @ first)))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_the_memory_a_failure_is_seen(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Client, "_stepped", forgetful)
    assert echo(attack, tmp_path, name, monkeypatch) < 0.05


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ours_moves_a_failed_round_by_it_too(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert echo(attack, tmp_path, name, monkeypatch) > 0.1
