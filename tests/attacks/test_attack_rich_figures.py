"""One exact answer shows a whole test image where figures are made of many numbers.

The sums are over all test images, as the owner wants. But `auc` counts the scores of every class in
2,048 bins, and a program may name classes that the site has no image of. A coordinator sends a
network that is blind to all images but the brightest, and gives each pixel of this one a class of
its own. How bright it is was the answer to the question before.

An owner who lets exact figures leave lets this leave: the threat model says so. Noised figures, and
none, which is the default of a site that requires anything, do not have it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import (
    CLASSES,
    SIDE,
    AttackedSite,
    Model,
    draw,
    known,
    noise_images,
    program,
)
from torch import Tensor

from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
PIXELS, TESTED = SIDE * SIDE, 12
BASE, LOW, RANGE = 60.0, 35.0, 18.0  # logits of the first class, and of black and of white
EDGE = 2048


def begin(attack: Attack, root: Path, **figures: Any) -> tuple[AttackedSite, Program]:
    images = draw(root / "images", noise_images(8), noise_images(TESTED, seed=2))
    site = attack("one", images, require=["secure_aggregation"], **figures)
    names = [*CLASSES, *(f"pixel {number}" for number in range(PIXELS))]
    of = program(
        images,
        data={"classes": names, "missing": "allow"},
        task={"metrics": ["auc"]},
        secure={"name": "secagg"},
    )
    assert "error" not in site.join(of)
    return site, of


def network(of: Program, first: Tensor, least: float) -> Tensor:
    """Scores that rise with the pixel-wise sums `first` [classes, 64] of images whose pixels sum up
    to more than `least`, and are those of black for all others."""
    model, classes = Model(known(of)), len(first)
    hidden = torch.zeros(200, PIXELS)
    hidden[:classes], hidden[199] = first, -1.0  # the last one sees how much is missing
    biases = torch.zeros(200)
    biases[199] = least
    model.set("hidden0.weight", hidden).set("hidden0.bias", biases)
    gate = torch.eye(200)
    gate[:classes, 199] = -1e6
    model.set("hidden1.weight", gate).set("hidden1.bias", 0.0)
    head = torch.zeros(classes, 200)
    head[:, :classes] = torch.eye(classes) * RANGE
    start = torch.full((classes,), LOW)
    start[0] = BASE
    found: Tensor = model.set("head.weight", head).set("head.bias", start).travelling
    return found


def shown(metrics: dict[str, Any], label: int) -> float:
    """The highest score of a class, from 0 (black) to 1 (white)."""
    counts = np.array(metrics["metric:auc"][0])[label].sum(axis=0)
    place = (int(np.flatnonzero(counts).max()) + 0.5) / EDGE * 2 - 1
    logit = 4 * place / (1 - abs(place))
    return (logit + BASE - LOW) / RANGE


def ask(site: AttackedSite, vector: Tensor, round: int) -> dict[str, Any] | None:
    found: dict[str, Any] | None = site.measure(vector, round).get("metrics")
    return found


def picture(site: AttackedSite, of: Program) -> np.ndarray | None:
    """The brightest test image [64] in values from 0 to 255, by two questions."""
    labels = len(CLASSES) + PIXELS
    whole = torch.zeros(labels, PIXELS)
    whole[len(CLASSES)] = 1.0 / PIXELS  # the mean; pixels are from 0 to 4
    bright = ask(site, network(of, whole, -1.0), 1)
    if bright is None:
        return None
    each = torch.zeros(labels, PIXELS)
    each[len(CLASSES) :] = torch.eye(PIXELS) / 4
    found = ask(site, network(of, each, shown(bright, len(CLASSES)) * PIXELS - 0.2), 2)
    assert found is not None
    return np.array([255 * shown(found, len(CLASSES) + at) for at in range(PIXELS)])


def test_two_exact_answers_show_a_whole_test_image(attack: Attack, tmp_path: Path) -> None:
    found = picture(*begin(attack, tmp_path, figures="exact"))
    assert found is not None
    brightest = max(noise_images(TESTED, seed=2), key=np.sum).flatten()
    assert np.abs(found - brightest).max() < 8


@pytest.mark.parametrize("figures", [{}, {"figures": "noised"}])
def test_neither_no_figures_nor_noised_ones_do(
    attack: Attack, tmp_path: Path, figures: dict[str, Any]
) -> None:
    assert picture(*begin(attack, tmp_path, **figures)) is None
