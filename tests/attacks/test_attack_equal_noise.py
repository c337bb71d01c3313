"""Noise that is a function of the answer: equal answers have equal noise, and show that they are.

A coordinator asks twice in one round: with a dead model, which computes the same for any image, and
with a trap, which does too unless the image that it looks for is there. If the noise is derived
from the values that get it, the two noised updates are the same bits if and only if the image is
not among the site's: membership with certainty, whatever epsilon says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite, Model, draw, known, noise_images, program, values
from torch import Tensor

from fedsight.deploy.site import trainer_process
from fedsight.governance.ledger import Ledger
from fedsight.privacy.noise import Noise
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
TARGET = np.random.default_rng(7).integers(20, 100, (8, 8)).astype(np.uint8)
OTHERS = noise_images(6)


@pytest.fixture(params=[True, False], ids=["member", "stranger"])
def member(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def home(tmp_path: Path, member: bool) -> Path:
    images = [*OTHERS[:-1], TARGET if member else OTHERS[-1]]
    return draw(tmp_path / "images", images)


def models(of: Program) -> tuple[Tensor, Tensor]:
    """The dead model, and the trap for TARGET: a matched filter that only its own image passes."""
    seen = torch.from_numpy(TARGET.astype(np.float32)).flatten() / 255 * 4
    matched = seen - seen.mean()
    threshold = 0.9 * float(matched @ seen)
    other = [torch.from_numpy(one.astype(np.float32)).flatten() / 255 * 4 for one in OTHERS]
    assert max(float(matched @ one) for one in other) < threshold
    dead = Model(known(of)).looking(torch.zeros(1, 64), -1.0).travelling
    trap = Model(known(of)).looking(matched[None], -threshold).travelling
    return dead, trap


def answers(site: AttackedSite, of: Program) -> tuple[Tensor, Tensor]:
    """The updates to both models, in the same round."""
    site.join(of)
    dead, trap = models(of)
    return values(site.train(dead)[1]), values(site.train(trap)[1])


PRIVACY: dict[str, dict[str, Any]] = {
    "local": {"name": "local", "noise_multiplier": 2.0},
    "example": {"name": "example", "noise_multiplier": 2.0},
}


@pytest.mark.parametrize("mechanism", PRIVACY)
def test_noise_derived_from_the_values_reveals_membership(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: bool, mechanism: str
) -> None:
    """As the first version had it: a secret of the site, the round, and the values."""
    monkeypatch.setattr(trainer_process, "fresh", partial(Noise, 123456789, "fingerprint"))
    images = home(tmp_path, member)
    of = program(images, privacy=PRIVACY[mechanism], train={"batch": 6})  # every step sees all
    dead, trap = answers(attack("weak", images), of)
    assert bool(torch.isclose(dead, trap, rtol=0, atol=1e-6).all()) != member


@pytest.mark.parametrize("mechanism", PRIVACY)
def test_fresh_noise_does_not(attack: Attack, tmp_path: Path, member: bool, mechanism: str) -> None:
    images = home(tmp_path, member)
    of = program(images, privacy=PRIVACY[mechanism])
    site = attack("ours", images)
    dead, trap = answers(site, of)
    assert not torch.isclose(dead, trap, rtol=0, atol=1e-6).float().mean() > 0.01
    again = values(site.train(models(of)[0])[1])
    assert not torch.isclose(dead, again, rtol=0, atol=1e-6).float().mean() > 0.01


def test_equal_answers_are_charged_and_a_repeated_question_has_one_answer(
    attack: Attack, tmp_path: Path
) -> None:
    images = home(tmp_path, False)
    of = program(images, privacy=PRIVACY["local"])
    site = attack("ours", images)
    site.join(of)
    dead, trap = models(of)
    first = site.train(dead)[1]
    assert site.train(dead)[1] == first, "the very same bytes"
    site.restart()
    site.join(of)
    assert site.train(dead)[1] == first, "they are on the disk"

    def charged() -> int:
        return sum(one.kind == "update" for one in Ledger(site.home).entries())

    assert charged() == 1
    site.train(trap)
    assert charged() == 2, "its answer without noise was the same"
    assert site.train(dead)[1] != first, "only the newest answer is kept"
    assert charged() == 3
