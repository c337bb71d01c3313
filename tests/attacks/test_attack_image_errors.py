"""One image at which the network fails takes the gradients of all others away.

DP-SGD's noise hides what one image adds. If an error at one image ends the step, the step loses
what all images add, and a coordinator that can make the network fail can choose the image. Here it
is whitening that fails: it factorises a covariance that the coordinator sends, which with this one
is impossible if and only if the features reach farther than most into a direction of its choice.
An update of noise alone, where many images pull in one direction, tells that the image was drawn.

Sites refuse whitening under DP-SGD; it stands for any network, a permitted plug-in's for example,
that fails at some images.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite
from test_non_interference import MODELS, SOURCE, program
from torch import Tensor, nn
from torch._C import _LinAlgError as FactorisationError
from torch.func import functional_call

from fedsight.client.optimizers import make_optimizer
from fedsight.client.per_image import PerImage, Single
from fedsight.core.types import Batch
from fedsight.models.base import Network, models
from fedsight.models.embedding import Embedding
from fedsight.models.gabor import Whiten
from fedsight.program import rules
from fedsight.program.train import Train
from fedsight.tasks.base import tasks

OTHERS, SIDE, CLIP = 15, 16, 0.01


class WholeStep(PerImage):
    """The weakened build: an image's error is that of the step."""

    def failed(self, error: Exception) -> None:
        raise error


def trap() -> tuple[Embedding, list[Single]]:
    """A network that fails at the first image only, and the images."""
    torch.manual_seed(0)
    small = models.get("face_net")(wavelengths=(4.0,), orientations=2, cell=4)
    module = small.build(1, SIDE, SIDE, 2, seed=0).module.train()
    assert isinstance(module, Embedding)
    person = torch.zeros(1, dtype=torch.int64)
    module.head.start_at(person, np.random.default_rng(0))
    x = torch.rand(OTHERS + 1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    images = [Single(Batch(x[[n]], person), n) for n in range(OTHERS + 1)]
    white = next(part for part in module.modules() if isinstance(part, Whiten))
    features = module.body[:2](x).detach()
    direction = features[0] - features[1:].mean(0)
    direction /= direction.norm()
    low, high = 0.0, 1e4
    for _ in range(60):  # the least scale of the covariance at which the other images pass
        scale = (low + high) / 2
        white.mean.copy_(10 * direction)
        white.product.copy_(scale * torch.eye(len(direction)))
        white.seen.fill_(100.0)
        fine = all(passes(module, one) for one in images[1:])
        low, high = (low, scale) if fine else (scale, high)
        if fine and not passes(module, images[0]):
            break
    return module, images


def passes(module: Embedding, image: Single) -> bool:
    """Whether the network takes an image; its statistics stay as they are."""
    body = module.body
    state = {name: value.clone() for name, value in body.named_buffers()}
    try:
        functional_call(body, state, (image.batch.x,))
    except FactorisationError:
        return False
    return True


def sum_of(build: type[PerImage], module: nn.Module, images: Iterable[Single]) -> Tensor:
    network = Network(module, frozenset(), frozenset(), ())
    optimizer = make_optimizer(dict(module.named_parameters()), Train(), 0.1, network)
    made = build(tasks.get("faces")(), module, optimizer, hides=True)
    return torch.cat([part.flatten() for part in made.clipped_sum(images, CLIP)])


def test_the_trap_catches_one_image() -> None:
    module, images = trap()
    assert [passes(module, one) for one in images] == [False] + [True] * OTHERS


def test_one_image_takes_all_gradients_away_where_its_error_ends_the_step() -> None:
    module, (target, *others) = trap()
    with pytest.raises(FactorisationError):  # and the site sends noise alone
        sum_of(WholeStep, module, [target, *others])
    assert float(sum_of(WholeStep, module, others).norm()) > 4 * CLIP, "which is missing then"


def test_ours_loses_that_image_alone() -> None:
    module, (target, *others) = trap()
    there, gone = (sum_of(PerImage, module, some) for some in ([target, *others], others))
    assert float((there - gone).norm()) <= CLIP * 1e-5


def joined(attack: Callable[..., AttackedSite], root: Path, name: str = "ours") -> dict[str, Any]:
    """What a protected site answers to a program whose network whitens."""
    of = program(root, "faces", "local")
    site = attack(
        name,
        {"name": "hidden", "path": str(root / "plain"), "kind": "faces"},
        require=["local_dp"],
        min_noise_multiplier=1.0,
        plugins=[sha256(SOURCE.read_bytes()).hexdigest()],
    )
    (site.home / "plugins").mkdir()
    shutil.copy(SOURCE, site.home / "plugins")
    return site.join(of)


def test_a_site_asks_its_own_network_what_the_rules_refuse(
    attack: Callable[..., AttackedSite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whitening is found in the network only: the program says nothing of BatchNorm."""
    monkeypatch.setitem(MODELS, "faces", {**MODELS["faces"], "whiten": True})
    assert "error" in joined(attack, tmp_path)
    monkeypatch.setattr(rules, "problems", lambda program, network=None: [])
    assert "declared" in joined(attack, tmp_path, "weak")
