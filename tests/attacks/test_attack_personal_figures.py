"""Noise for one test image does not hide what a training image did to the site's own parameters.

Under `local` the head that fedrep keeps at the site is trained without noise: it never leaves. But
figures are measured with it. A malicious coordinator sends a body whose features are not zero for
one training image only, so that the head learns if and only if that image is there; then it has a
body measured that answers nothing but the head's bias. All test images change sides together, and
the noise was sized for one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from attacked_site import SIDE, AttackedSite, Model, draw, known, noise_images, program

from fedsight.deploy.site.figures import FigureRules
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
TARGET = 250  # the brightest grey value of the image in question; all others are below 100
CONTRACT = {
    "require": ["local_dp"],
    "min_noise_multiplier": 8.0,
    "figures": "noised",
}


def images(folder: Path, there: bool) -> Path:
    """Training images with or without the target, and 120 test images of two classes."""
    train = noise_images(6)
    if there:
        train[1][4, 4] = TARGET
    return draw(folder, train, noise_images(120, seed=1))


def personal(data: Path, algorithm: str = "fedrep") -> Program:
    return program(
        data,
        algorithm={"name": algorithm},
        train={"batch": 4, "lr": 0.1},
        privacy={"name": "local", "noise_multiplier": 8.0},
    )


def guess(site: AttackedSite, of: Program) -> bool | None:
    """Whether the target is among the training images; None if nothing is answered."""
    pixels = torch.zeros(1, SIDE * SIDE)
    pixels[0, 4 * SIDE + 4] = 1.0
    federation = known(of)
    trap = Model(federation).looking(pixels, bias=-150 * 4 / 255)  # zero but for brighter pixels
    site.train(trap.set("hidden1.weight", 1.0).set("hidden1.bias", 0.0).travelling)
    # With a head that has not learnt, these features, the same for every image, say "ant".
    ant, bee = known(of).network.module.get_parameter("head.weight").detach()
    against = ((bee - ant < 0) & (bee - ant > -0.03)).float()
    flat = Model(federation).looking(0 * pixels).set("hidden1.weight", 0.0)
    found = site.measure(flat.set("hidden1.bias", 100 * against).travelling, accepted=1)
    if "withheld" in found:
        return None
    confusion = np.asarray(found["metrics"]["confusion"][0])
    return bool(confusion[:, 1].sum() > confusion[:, 0].sum())


@pytest.mark.parametrize("there", [True, False])
def test_noise_for_a_test_image_does_not_hide_a_training_image(
    attack: Attack, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    why_none = FigureRules._why_none
    monkeypatch.setattr(FigureRules, "_why_none", lambda self, n, bare: why_none(self, n, False))
    data = images(tmp_path / "images", there)
    site, of = attack("weak", data, **CONTRACT), personal(data)
    site.join(of)
    assert guess(site, of) is there


@pytest.mark.parametrize("algorithm", ["fedrep", "ditto", "apfl"])
def test_no_figures_leave_of_models_with_parameters_that_were_trained_bare(
    attack: Attack, tmp_path: Path, algorithm: str
) -> None:
    data = images(tmp_path / "images", True)
    site, of = attack("ours", data, **CONTRACT), personal(data, algorithm)
    assert "without noise" in site.join(of)["declared"]["withheld"]
    assert guess(site, of) is None
