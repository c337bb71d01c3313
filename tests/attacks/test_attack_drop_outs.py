"""Drop-outs as answers: who failed in a round of secure aggregation.

The same model that overflows for bright pixels, sent to all sites of a round whose updates are
masked. Sites at which training fails drop out, and so tell which of them has a bright pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from site_services import LocalLink

from fedsight.core.types import Order
from fedsight.deploy.declaration import gather
from fedsight.deploy.server.joining import propose
from fedsight.engines.base import Outcome, collect
from fedsight.engines.remote.engine import RemoteEngine, RunRecord
from fedsight.governance.contract import Contract

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
MASKED: dict[str, dict[str, Any]] = {
    "secure_aggregation": {"secure": {"name": "secagg", "dropout": 0.3}},
    "distributed_dp": {
        "secure": {"name": "secagg", "dropout": 0.3},
        "privacy": {"name": "distributed", "noise_multiplier": 1.0},
    },
}


def round_of(attack: Attack, tmp_path: Path, required: str) -> tuple[Outcome, list[AttackedSite]]:
    """A round with a model whose training fails at site b alone."""
    sites = []
    for number, name in enumerate(NAMES):
        images = noise_images(6, number)
        if name == "b":
            images[3][2, 5] = 173
        contract = {"require": [required], "min_noise_multiplier": 1.0, "figures": "none"}
        if required == "secure_aggregation":
            del contract["min_noise_multiplier"]
        sites.append(attack(name, draw(tmp_path / f"images-{name}", images), **contract))
    of = program(tmp_path / "images-a", **MASKED[required])
    link = LocalLink({site.home.name: site.service for site in sites})
    declared, absent, _, _ = propose(of, "run1", link, {})
    assert not absent
    weight = torch.eye(64) * (torch.finfo(torch.float32).max / (4 * 150 / 255))
    model = Model(known(of)).looking(weight).set("hidden1.weight", 0.0).set("hidden1.bias", -1.0)
    record = RunRecord({}, {}, lambda: 0, id="run1")
    engine = RemoteEngine(gather(of, declared), link, record)
    order = Order(1, model.travelling)
    return collect(engine, order, range(3), lambda _: None, lambda: None), sites


def test_a_site_that_drops_out_tells_what_its_images_are_like(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contract, "protected", False)
    outcome, _ = round_of(attack, tmp_path, "secure_aggregation")
    assert [one.site for one in outcome.accepted] == ["a", "c"]
    assert "is not finite" in outcome.rejected["b"]


@pytest.mark.parametrize("required", MASKED)
def test_a_protected_site_adds_zeros_inside_its_mask(
    attack: Attack, tmp_path: Path, required: str
) -> None:
    outcome, sites = round_of(attack, tmp_path, required)
    assert sorted(one.site for one in outcome.accepted) == list(NAMES)
    assert not outcome.rejected
    logs = {site.home.name: site.service._log.read() for site in sites}
    failed = {
        name for name, lines in logs.items() if any(line["event"] == "failed" for line in lines)
    }
    assert failed == {"b"}
