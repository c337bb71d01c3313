"""Running statistics that a program freezes move all the same, and remember training images.

A program may name what learns (`train.only`); everything else is frozen, and counts as what never
changes: it is no memory, and no parameter that was trained here without noise. But a forward pass
in training moves the mean and covariance of `face_net`. Where they stay so, the next question is
answered with them: noised figures of the test images, whose noise hides one of those, show a
training image; and a site's next update depends on whether it took part before, which no key is
bound to.
"""

from __future__ import annotations

from pathlib import Path

import face_images
import pytest
import torch
from face_images import SIDE
from PIL import Image
from torch import Tensor, nn

from fedsight.client import step
from fedsight.client.step import Client
from fedsight.core.types import Metrics, Order
from fedsight.models.norms import is_batch_norm
from fedsight.program.federation import Federation

SITE, TRAINED = 0, "Cleopatra"


def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened build: frozen are BatchNorms only, and what is put back are integers."""

    def integers(client: Client) -> list[tuple[Tensor, Tensor]]:
        found = [one for one in client.model.buffers() if not one.is_floating_point()]
        return [(one, one.clone()) for one in found]

    def norms(module: nn.Module, frozen: object) -> list[nn.Module]:
        return [part for part in module.modules() if is_batch_norm(part)]

    monkeypatch.setattr(Client, "_constant_buffers", integers)
    monkeypatch.setattr(step, "still", norms)


def federation(root: Path, there: bool) -> Federation:
    """One site's people; with `there` a training image is of black and white stripes."""
    face_images.draw(root, 1)
    if there:
        stripes = torch.arange(SIDE).remainder(2).mul(255).byte().expand(SIDE, SIDE)
        (person,) = root.glob(f"*/{TRAINED}")
        Image.fromarray(stripes.contiguous().numpy()).save(person / "0.png")
    return face_images.federation(root, train={"only": ["body.vector"], "batch": 2, "lr": 0.05})


def sums(of: Federation) -> Metrics:
    """What the site's noised figures are made of, after it has trained in a round."""
    client, vector = Client(of), of.initial[of.layout.travelling]
    client.step(Order(1, vector), SITE, {})
    client.load(vector, {})
    bounds = of.program.task.bounds(len(of.dataset.classes), SIDE * SIDE)
    assert bounds is not None
    return client.measure_each(of.tested(of.views[SITE]), bounds)


def moved(tmp_path: Path) -> float:
    """How far one training image of the site moves these sums."""
    there, gone = (sums(federation(tmp_path / str(one), one)) for one in (True, False))
    return max(float(abs(there[name].total - gone[name].total).max()) for name in there)


def test_noised_figures_show_a_training_image_where_frozen_statistics_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving(monkeypatch)
    assert moved(tmp_path) > 0.01


def test_ours_do_not_depend_on_it(tmp_path: Path) -> None:
    assert moved(tmp_path) == 0


def again(tmp_path: Path) -> float:
    """How far an update of round 2 depends on whether the site took part in round 1."""
    of = federation(tmp_path / "faces", False)
    order = [Order(number, of.initial[of.layout.travelling]) for number in (1, 2)]
    client, other = Client(of), Client(of)
    client.step(order[0], SITE, {})
    found = client.step(order[1], SITE, {}).payload["delta"].clone()
    return float((found - other.step(order[1], SITE, {}).payload["delta"]).abs().max())


def test_an_update_shows_who_took_part_before_where_frozen_statistics_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving(monkeypatch)
    assert again(tmp_path) > 1e-4


def test_our_update_does_not(tmp_path: Path) -> None:
    assert again(tmp_path) == 0
