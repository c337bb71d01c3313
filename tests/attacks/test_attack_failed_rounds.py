"""A failed round of a site that remembers is told from any other by what did not move its steps.

Under DP-SGD a protected site whose training failed takes the steps of noise alone. SCAFFOLD and
FedDyn add what the site remembers to every step, which the coordinator knows from before.
So a contribution in which it is missing says that training failed, which may depend on one image.
What a failed round leaves to remember must be remembered too, or the round after it tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program, values
from torch import Tensor

from fedsight.client.step import Client

Attack = Callable[..., AttackedSite]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "scaffold": {"name": "scaffold"},
    "feddyn": {"name": "feddyn", "alpha": 1.0},
}
step, stepped, blank = Client.step, Client._stepped, Client.blank


def forgetful(self: Client, order: Any, site: Any, memory: Any, blank: bool = False) -> Any:
    """As the first version was: a failed round without what the site remembers."""
    return stepped(self, order, site, {} if blank else memory, blank)


def unmoved(self: Client, order: Any, client: int, memory: Any) -> Any:
    """As the second version was: a failed round leaves what the site remembers as it was."""
    return replace(blank(self, order, client, memory), memory=memory)


def rounds(
    attack: Attack, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, fails: bool = True
) -> tuple[list[Tensor], int]:
    """What the site sends in three rounds, of which the second fails, and a vector's length."""
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
    first = values(site.train(vector, extras, round=1)[1])

    def died(*_: Any) -> Any:
        raise RuntimeError("stands for a process that died")

    if fails:
        monkeypatch.setattr(Client, "step", died)
    second = values(site.train(vector, extras, round=2)[1])
    monkeypatch.setattr(Client, "step", step)
    return [first, second, values(site.train(vector, extras, round=3)[1])], size


def echo(attack: Attack, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """How much of what the site remembers of a round is in the next one, which fails."""
    (one, two, _), size = rounds(attack, tmp_path, name, monkeypatch)
    # What the site remembers of the first round: SCAFFOLD sends it, FedDyn's is the update's.
    first, second = one[-size:], two[:size]
    return abs(float((second @ first) / (first @ first)))


def after(attack: Attack, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """The cosine between what a failed round leaves to remember and the update of the next.

    SCAFFOLD sends it, the change of its control, and steps along it; FedDyn's is alpha times the
    update, and steps against it.
    """
    (_, two, three), size = rounds(attack, tmp_path, name, monkeypatch)
    left = two[-size:] if name == "scaffold" else -two
    return float(torch.cosine_similarity(left, three[:size], dim=0))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_memory_that_stays_is_seen_in_the_next_round(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Client, "blank", unmoved)
    assert after(attack, tmp_path, name, monkeypatch) < (0.05 if name == "feddyn" else -0.2)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ours_moves_it_as_a_round_that_trained_does(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert after(attack, tmp_path, name, monkeypatch) > (0.1 if name == "feddyn" else 0.2)


@pytest.mark.parametrize("fails", [False, True])
def test_under_feddyn_rounds_that_follow_a_failed_one_are_those_that_follow_any(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """How much of each update is in the next, of three of which the second may fail."""
    if not fails:
        monkeypatch.setattr(Client, "blank", None)
    (one, two, three), _ = rounds(attack, tmp_path, "feddyn", monkeypatch, fails)
    told = [float(before @ then / (before @ before)) for before, then in ((one, two), (two, three))]
    assert told == pytest.approx([-0.19, -0.16], abs=0.03)


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
