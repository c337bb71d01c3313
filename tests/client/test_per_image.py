"""DP-SGD: one image changes the clipped sum by at most the clip, and no other image's part of it.

For every task, and for losses, networks and augmentations that would couple the images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from task_cases import CASES, CLASSES, SIDE, Case, begun, images, labels
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.client.optimizers import make_optimizer
from fedsight.client.per_image import PerImage, Single
from fedsight.client.training import learning
from fedsight.core.types import Batch
from fedsight.models.adapters.base import adapters
from fedsight.models.base import Network, models
from fedsight.program.objective import task as own_task
from fedsight.program.train import Train
from fedsight.tasks.base import Task, tasks
from fedsight.tasks.classification import Classification

CLIP = 0.5


def per_image(task: Task, module: nn.Module) -> PerImage:
    network = Network(module, frozenset(), frozenset(), ())
    learning = dict(module.named_parameters())
    return PerImage(task, module, make_optimizer(learning, Train(), 0.1, network))


def singles(batch: Batch) -> list[Single]:
    return [Single(Batch(batch.x[[at]], batch.y[[at]]), at) for at in range(len(batch.x))]


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def others_stay(made: PerImage, batch: Batch, clip: float) -> None:
    """Whatever stands in an image's place, the others add what they add without it."""
    first, *others = singles(batch)
    bright = Batch(batch.x[[0]] * 40 - 3, batch.y[[1]])
    rest = flat(made.clipped_sum(others, clip))
    sums = []
    for one in (first, Single(bright, 0), Single(batch_of(others[-1]), 0)):
        mine = flat(made.clipped_sum([one], clip))
        whole = flat(made.clipped_sum([one, *others], clip))
        assert float(mine.norm()) <= clip * (1 + 1e-5)
        assert torch.allclose(whole - mine, rest, rtol=0, atol=2e-5 * max(1, float(rest.norm())))
        sums.append(whole)
    for other in sums[1:]:
        assert float((other - sums[0]).norm()) <= 2 * clip * (1 + 1e-4)


def batch_of(one: Single) -> Batch:
    return one.batch


def test_all_tasks_are_among_the_cases() -> None:
    assert {str(CASES[name]()[0].registered) for name in CASES} == set(tasks.names())


@pytest.mark.parametrize("clip", [CLIP, 1e4])
@pytest.mark.parametrize("name", CASES)
def test_an_image_changes_no_other_images_gradient(name: str, clip: float) -> None:
    task, module, batch = begun(name)
    others_stay(per_image(task, module), batch, clip)


@pytest.mark.parametrize("name", CASES)
def test_vectorised_gradients_are_those_of_one_image_at_a_time(name: str) -> None:
    task, module, batch = begun(name)
    made = per_image(task, module)
    found = flat(made.clipped_sum(singles(batch), CLIP))
    # The shapes of `detect` depend on the boxes, and face_net counts what it has seen.
    assert made._vectorised == (task.registered not in ("detect", "faces"))
    made._vectorised = False
    alone = flat(made.clipped_sum(singles(batch), CLIP))
    assert torch.allclose(found, alone, atol=1e-5)


# -- what couples images in ordinary training ------------------------------------------------------


def by_counts(logits: Tensor, y: Tensor) -> Tensor:
    """Weights by how frequent a class is in the batch."""
    counts = torch.nn.functional.one_hot(y, CLASSES).sum(0).clamp(min=1)
    return (F.cross_entropy(logits, y, reduction="none") / counts[y]).sum()


def hardest(logits: Tensor, y: Tensor) -> Tensor:
    """Only the worst image of a batch counts."""
    return F.cross_entropy(logits, y, reduction="none").topk(1).values.mean()


def weighted(logits: Tensor, y: Tensor) -> Tensor:
    """Divided by the sum of the batch's weights."""
    return F.cross_entropy(logits, y, weight=torch.tensor([1.0, 5.0, 1.0, 20.0]))


class Mixup(Classification):
    """Trains on the means of an image and its neighbour (Zhang et al. 2018)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy with both labels."""
        logits = model((batch.x + batch.x.roll(1, 0)) / 2)
        both = F.cross_entropy(logits, batch.y) + F.cross_entropy(logits, batch.y.roll(1))
        return both / 2


class Centred(nn.Module):
    """Subtracts the batch's mean, which no norm layer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(x - x.mean(0) / 2)


class Averages(Centred):
    """Keeps a running mean of the images in a buffer, and uses it."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIDE * SIDE))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
        return self.layer(x - self.mean)


def normed(**settings: bool) -> nn.Module:
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, **settings), nn.Flatten(), nn.LazyLinear(4))
    made = nn.Sequential(*layers)
    made.eval()(images(1, SIDE, SIDE))
    return made.train()


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


COUPLING: dict[str, Callable[[], tuple[Task, nn.Module]]] = {
    "weights by the counts of the batch": lambda: (own_task(loss=by_counts), plain()),
    "the hardest of the batch": lambda: (own_task(loss=hardest), plain()),
    "class weights": lambda: (own_task(loss=weighted), plain()),
    "mixup": lambda: (Mixup(), plain()),
    "the mean of the batch": lambda: (Classification(), Centred()),
    "a buffer": lambda: (Classification(), Averages()),
    "BatchNorm": lambda: (Classification(), normed()),
    "BatchNorm without statistics": lambda: (Classification(), normed(track_running_stats=False)),
}


def case(name: str) -> Case:
    torch.manual_seed(0)
    task, module = COUPLING[name]()
    return task, module.train(), Batch(images(1, SIDE, SIDE), labels())


@pytest.mark.parametrize("name", COUPLING)
def test_losses_and_networks_that_couple_images_do_not_here(name: str) -> None:
    task, module, batch = case(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    others_stay(per_image(task, module), batch, 1e4)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", [name for name in COUPLING if name != "class weights"])
def test_they_do_in_ordinary_training(name: str) -> None:
    """Or the test before would show nothing: an image in another's place moves them."""
    gradients = []
    for other in (1.0, 0.0, 90.0, -90.0):
        task, module, batch = case(name)
        x = batch.x.clone().requires_grad_()
        changed = torch.cat([x[:1] * other, x[1:]])
        y = torch.cat([batch.y[:1] + int(other != 1), batch.y[1:]])
        (slope,) = torch.autograd.grad(task.loss(module, Batch(changed, y)), x)
        gradients.append(slope[1:])
    first, *changed_ones = gradients
    assert any(not torch.allclose(first, one, rtol=1e-3, atol=1e-7) for one in changed_ones)


def test_dropout_of_an_image_depends_on_no_other_image() -> None:
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(SIDE * SIDE, CLASSES)).train()
    made = per_image(Classification(), dropping)
    batch = Batch(images(1, SIDE, SIDE), labels())
    others_stay(made, batch, 1e4)
    assert not made._vectorised  # all images of a batch would draw from one stream
    one, *_ = singles(batch)
    first, again = (flat(made.clipped_sum([one], 1e4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, flat(made.clipped_sum([replace(one, seed=9)], 1e4)))


def test_a_gradient_that_is_not_finite_adds_nothing_and_tells_nothing() -> None:
    made = per_image(Classification(), plain())
    batch = Batch(images(1, SIDE, SIDE), labels())
    _, *others = singles(batch)
    broken = Single(Batch(batch.x[[0]] * float("nan"), batch.y[[0]]), 0)
    with_it, without = (made.clipped_sum(some, CLIP) for some in ([broken, *others], others))
    assert torch.allclose(flat(with_it), flat(without), atol=1e-6)


class Tempered(nn.Module):
    """Divides what a layer says by a temperature, a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = plain()
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) / self.temperature
        return found


@pytest.mark.parametrize("hides", [True, False])
def test_a_parameter_without_dimensions_is_clipped_like_others(hides: bool) -> None:
    task, module = Classification(), Tempered()
    made = per_image(task, module)
    made._vectorised = not hides
    batch = Batch(images(1, SIDE, SIDE), labels())
    others_stay(made, batch, CLIP)
    one, *_ = singles(batch)
    found = torch.autograd.grad(task.loss(module, one.batch), list(module.parameters()))
    norm = float(flat(found).norm())
    assert norm > CLIP
    assert float(found[0]) != 0, "the temperature's"
    parts = made.clipped_sum([one], CLIP)
    assert [part.shape for part in parts] == [value.shape for value in module.parameters()]
    assert torch.allclose(flat(parts), flat(found).double() * (CLIP / norm), atol=1e-6)


def test_groups_of_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    task, module, batch = begun("classify")
    whole = flat(per_image(task, module).clipped_sum(singles(batch), CLIP))
    monkeypatch.setattr("fedsight.client.per_image.HELD", 1)
    parts = flat(per_image(task, module).clipped_sum(singles(batch), CLIP))
    assert torch.allclose(whole, parts, atol=1e-6)


def test_an_error_of_the_loss_itself_comes_up() -> None:
    def broken(logits: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("a mistake in the loss")

    made = per_image(own_task(loss=broken), plain())
    with pytest.raises(RuntimeError, match="a mistake in the loss"):
        made.clipped_sum(singles(Batch(images(1, SIDE, SIDE), labels())), CLIP)


@pytest.mark.parametrize("name", ["lora", "ffa-lora", "bias"])
def test_with_an_adapter_an_image_changes_no_others_gradient_and_its_own_by_the_clip(
    name: str,
) -> None:
    network = models.get("small_cnn")(width=8).build(1, 16, 16, 3, 0)
    network = adapters.get(name)().adapt(network, 0)
    whole = dict(network.module.named_parameters())
    for value in whole.values():
        value.data.add_(0.01)  # a change that is zero gives its A no gradient
    chosen = learning(whole, lambda key: key not in network.frozen)
    draws = torch.Generator().manual_seed(4)
    batch = Batch(torch.rand(5, 1, 16, 16, generator=draws), torch.tensor([0, 1, 2, 1, 0]))

    def made() -> PerImage:
        optimizer = make_optimizer(chosen, Train(), 0.1, network)
        return PerImage(Classification(), network.module, optimizer)

    others_stay(made(), batch, CLIP)
    alone = made()
    alone._vectorised = False
    one_by_one = flat(alone.clipped_sum(singles(batch), CLIP))
    at_once = made()
    together = flat(at_once.clipped_sum(singles(batch), CLIP))
    assert at_once._vectorised, "the low-rank product must not end vectorisation"
    torch.testing.assert_close(together, one_by_one, atol=1e-6, rtol=1e-4)
    assert len(together) == sum(value.numel() for value in chosen.values())
