"""Errors as free and noiseless answers: the brightest pixel of a site, by bisection.

A coordinator sends a model whose first layer multiplies every pixel by w. The product overflows,
and so the training fails, if and only if some pixel exceeds 3.4e38 / w. Each question tells one
bit, eight of them the brightest of all pixels, exactly, whatever noise updates get.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program
from torch import Tensor

from fedsight.deploy.site.log import SiteLog
from fedsight.governance.contract import Contract
from fedsight.governance.ledger import Ledger
from fedsight.program.program import Program

BRIGHTEST, DARKEST = 173, 64  # what is searched, and from where
LIMIT = torch.finfo(torch.float32).max
CONTRACT = {"require": ["local_dp"], "min_noise_multiplier": 8.0, "attempts": 20}
Attack = Callable[..., AttackedSite]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    found = noise_images(6)
    found[3][2, 5] = BRIGHTEST
    return draw(tmp_path / "images", found)


def noised(images: Path) -> Program:
    return program(images, privacy={"name": "local", "noise_multiplier": 8.0})


def overflowing(model: Model, grey: float) -> Tensor:
    """A model whose training fails if some pixel is at least `grey`."""
    weight = torch.eye(64) * (LIMIT / (4 * (grey - 0.5) / 255))
    return model.looking(weight).set("hidden1.weight", 0.0).set("hidden1.bias", -1.0).travelling


def brightest(site: AttackedSite, of: Program) -> int:
    """The largest grey value for which training still fails, found by bisection."""
    model, low, high = Model(known(of)), DARKEST, 256
    while high - low > 1:
        middle = (low + high) // 2
        fields, _ = site.train(overflowing(model, middle))
        low, high = (middle, high) if "error" in fields else (low, middle)
    return low


def test_a_site_that_tells_its_errors_tells_its_brightest_pixel(
    attack: Attack, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contract, "protected", False)
    site, of = attack("weak", images, **CONTRACT), noised(images)
    site.join(of)
    assert brightest(site, of) == BRIGHTEST


def test_a_protected_site_sends_noise_instead_of_an_error(attack: Attack, images: Path) -> None:
    site, of = attack("ours", images, **CONTRACT), noised(images)
    site.join(of)
    assert brightest(site, of) == DARKEST, "no question fails, so nothing is learnt"
    answers = [json.loads(text) for kind, text, _ in site.heard if kind == "train"]
    assert len(answers) in (7, 8)
    (size,) = {size for kind, _, size in site.heard if kind == "fetch"}
    alike = {"round": 1, "weight": 1, "metrics": {}, "bytes": size, "done": True}
    assert all({**answer, "ticket": 0} == {**alike, "ticket": 0} for answer in answers)


def test_every_question_is_charged_and_the_reason_stays_at_the_site(
    attack: Attack, images: Path
) -> None:
    site, of = attack("ours", images, **CONTRACT), noised(images)
    site.join(of)
    fields, data = site.train(overflowing(Model(known(of)), BRIGHTEST))
    assert "error" not in fields
    assert fields["metrics"] == {}
    update = torch.frombuffer(bytearray(data), dtype=torch.float32)
    assert update.std() == pytest.approx(8.0, rel=0.2), "the noise of an update of zeros"
    (charged,) = [one for one in Ledger(site.home).entries() if one.kind == "update"]
    assert charged.event is not None
    failed = [line for line in SiteLog(site.home).read() if line["event"] == "failed"]
    assert "not finite" in failed[0]["why"]
