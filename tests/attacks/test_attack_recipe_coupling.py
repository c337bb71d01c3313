"""Mixed images, balanced sampling and weights by counts couple the images of a site.

Each is harmless in ordinary training. Under DP-SGD each lets one image change the gradients of
others, or how often they are drawn, by far more than the clip that the noise is sized for. Here
each is put in front of DP-SGD's clipped sum, as an unwary build would do, and the sum moves by many
clips when one image is taken away. FedSight refuses all three; public weights, which couple
nothing, stay, and are shown to move the sum by one clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import federations
import pytest
import torch
from task_cases import CLASSES, SIDE
from torch import Tensor, nn

from fedsight.client.optimizers import make_optimizer
from fedsight.client.per_image import PerImage, Single
from fedsight.client.sampling import balanced
from fedsight.core.errors import ConfigError
from fedsight.core.rng import generator
from fedsight.core.types import Batch
from fedsight.data.augment.base import augment, read
from fedsight.models.base import Network
from fedsight.program import rules
from fedsight.program.train import Train
from fedsight.tasks.classification import Classification

OTHERS, CLIP = 40, 0.5


def images(with_target: bool) -> tuple[Tensor, Tensor]:
    """Images of class 0, and perhaps, as the first, the only one of class 1."""
    x = torch.rand(OTHERS + 1, 1, SIDE, SIDE, generator=generator(1))
    y = torch.zeros(OTHERS + 1, dtype=torch.int64)
    y[0] = 1
    return (x, y) if with_target else (x[1:], y[1:])


def clipped_sum(task: Classification, x: Tensor, y: Tensor, clip: float = CLIP) -> Tensor:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    network = Network(module, frozenset(), frozenset(), ())
    learning = dict(module.named_parameters())
    made = PerImage(task, module, make_optimizer(learning, Train(), 0.1, network))
    singles = [Single(Batch(x[[n]], y[[n]]), n) for n in range(len(x))]
    return torch.cat([part.flatten() for part in made.clipped_sum(singles, clip)])


def mixed(x: Tensor, y: Tensor) -> Tensor:
    """Every second image is mixed with the one before it, and so on around."""
    task = Classification()
    x, mixture = augment(x, read([{"name": "mixup", "alpha": 50.0}]), generator(2))
    assert mixture is not None
    return clipped_sum(task, x, mixture.of(task.soft(y, CLASSES)))


def balanced_epoch(x: Tensor, y: Tensor) -> Tensor:
    order = balanced(y, generator(3))
    return clipped_sum(Classification(), x[order], y[order])


def weighted_by_counts(x: Tensor, y: Tensor) -> Tensor:
    # A clip that most gradients keep, as it is usually chosen: else it hides the weights.
    return clipped_sum(Classification(class_weights="site").at(y, CLASSES), x, y, 20.0) / 40


def weighted_in_public(x: Tensor, y: Tensor) -> Tensor:
    return clipped_sum(Classification(class_weights=(0.5, 20.0, 1.0, 1.0)), x, y)


def moved(build: Callable[[Tensor, Tensor], Tensor]) -> float:
    """How far the target moves the sum, in clips; what is accounted is 1."""
    there, gone = (build(*images(target)) for target in (True, False))
    return float((there - gone).norm()) / CLIP


@pytest.mark.parametrize(
    ("build", "clips"), [(mixed, 1.2), (balanced_epoch, 8.0), (weighted_by_counts, 2.0)]
)
def test_one_image_moves_the_sum_by_more_than_the_clip(
    build: Callable[[Tensor, Tensor], Tensor], clips: float
) -> None:
    assert moved(build) > clips


def test_public_weights_move_it_by_the_clip_at_most() -> None:
    assert moved(weighted_in_public) <= 1 + 1e-4


SECTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"train": {"augment": ["mixup"]}}, "train.augment", "made of two"),
    ({"train": {"augment": ["flip", "cutmix"]}}, "train.augment", "made of two"),
    ({"train": {"sampling": "balanced"}}, "train.sampling", "same probability"),
    ({"task": {"class_weights": "site"}}, "task.class_weights", "all of a site's labels"),
]


@pytest.mark.parametrize(("sections", "where", "cause"), SECTIONS)
def test_they_are_refused_where_single_images_are_protected(
    sections: dict[str, Any], where: str, cause: str
) -> None:
    protected = {"privacy": {"name": "example", "epsilon": 8.0}}
    (problem,) = federations.program(**protected, **sections).check()
    assert problem.where == where
    assert cause in problem.cause
    with pytest.raises(ConfigError):
        federations.federation(**protected, **sections)
    # A site asks the same rules, whatever the coordinator has checked (`trainer_process.py`).
    plain = federations.federation(**protected)
    asked = federations.program(**protected, **sections)
    assert rules.problems(asked, plain.network)


@pytest.mark.parametrize("sections", [sections for sections, _, _ in SECTIONS])
def test_where_whole_sites_are_protected_the_clip_covers_them(sections: dict[str, Any]) -> None:
    protected = {"name": "local", "noise_multiplier": 1.0, "clip": 0.1}
    given = {"rounds": {"weighting": "uniform", "rounds": 1}, "privacy": protected, **sections}
    assert federations.program(**given).check() == []
    trained = federations.learn(federations.federation(**given))
    assert bool(torch.isfinite(trained.vector).all())
