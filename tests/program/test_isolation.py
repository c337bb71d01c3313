"""What DP-SGD cannot protect is refused before training, with its cause and cure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.client.step import Client
from fedsight.core.errors import ConfigError
from fedsight.core.types import Batch
from fedsight.program.federation import Federation, federate
from fedsight.program.objective import task as own_task
from fedsight.program.objects import model as own_model
from fedsight.program.program import Program
from fedsight.tasks.classification import Classification

EXAMPLE = {"name": "example", "noise_multiplier": 1.0}


def program(privacy: dict[str, Any] = EXAMPLE, **parts: Any) -> Program:
    made = federations.program(privacy=privacy, rounds={"weighting": "uniform"})
    return replace(made, **parts)


class Averaging:
    """Weights of classes by a running average of how frequent they are."""

    def __init__(self) -> None:
        self.counts = torch.ones(10)

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        self.counts = 0.9 * self.counts + F.one_hot(y, 10).sum(0)
        return (F.cross_entropy(logits, y, reduction="none") / self.counts[y]).mean()


def contrastive(logits: Tensor, y: Tensor) -> Tensor:
    """Each image against the batch (van den Oord et al. 2018): of one alone, always 0."""
    unit = F.normalize(logits, dim=1)
    return F.cross_entropy(unit @ unit.T, torch.arange(len(y)))


class SpreadOut(Classification):
    """Divides by the standard deviation over the batch, which one image has not."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x)
        return F.cross_entropy(logits / logits.std(0), batch.y)


class Pairs(Classification):
    """Needs two images."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if len(batch.y) < 2:
            raise ValueError("pairs are needed")
        return F.cross_entropy(model(batch.x), batch.y)


class Queue(nn.Module):
    """Keeps the features of the last images (He et al. 2020) where no buffer is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(14 * 14, 10), torch.zeros(1, 14 * 14)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.flatten(1) + self.last.mean(0)
        self.last = x.detach().flatten(1)
        out: Tensor = self.layer(mixed)
        return out


REFUSED = {
    "a running average": ({"task": own_task(loss=Averaging())}, "remember images"),
    "a queue": ({"model": own_model(Queue)}, "remember images"),
    "pairs": ({"task": own_task(loss=contrastive)}, "compares images with one another"),
    "a deviation": ({"task": SpreadOut()}, "no finite gradient"),
    "an error": ({"task": Pairs()}, "fail on one image.*pairs are needed"),
}


@pytest.mark.filterwarnings("ignore:std():UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_couples_images_over_calls_is_refused(name: str) -> None:
    parts, cause = REFUSED[name]
    with pytest.raises(ConfigError, match=f"(?s){cause}.*'local' or 'central'"):
        federate(program(**parts))
    federate(program({"name": "local", "noise_multiplier": 1.0}, **parts))  # a whole site is one


def test_a_site_tries_it_itself() -> None:
    unchecked = federate(program({"name": "none"}, task=own_task(loss=Averaging())))
    of = Federation(
        replace(unchecked.program, privacy=program().privacy),
        unchecked.dataset,
        unchecked.partition,
        unchecked.views,
    )
    with pytest.raises(ConfigError, match="remember images"):
        Client(of)


def test_the_trial_changes_nothing_and_draws_nothing() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made, other = federate(program()), federate(program({"name": "none"}))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made.initial, other.initial)
    assert all(value.grad is None for value in made.network.module.parameters())


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_ordinary_losses_pass(loss: Any) -> None:
    federate(program(task=own_task(loss=loss)))
