"""Classes that a site does not label take no part in the losses and figures of its images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.types import Batch, Metrics
from fedsight.data.augment.base import Mixture
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification
from fedsight.tasks.loss_module import LossModule
from fedsight.tasks.multilabel import MultiLabel
from fedsight.tasks.ordinal import Ordinal
from fedsight.tasks.segmentation import Segmentation
from fedsight.tasks.unlabelled import into_background, known_shares

CLASSES = 4
HIDDEN = torch.tensor([False, True, False, True])
LEFT = [0, 2]  # the classes that are labelled


class Given(nn.Module):
    """A network whose outputs are its only parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.out = nn.Parameter(torch.randn(shape, generator=draws))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, whatever the images."""
        return self.out[: len(x)]


def batch(y: Tensor, hidden: Tensor | None = HIDDEN) -> Batch:
    shown = None if hidden is None else hidden.expand(len(y), CLASSES)
    return Batch(torch.zeros(len(y), 1, 2, 2), y, shown)


@torch.no_grad()
def measured(task: Task, model: nn.Module, shown: Batch) -> Metrics:
    return task.measure(model, shown, CLASSES)


def classes(count: int = 6) -> Tensor:
    return torch.tensor([LEFT[number % 2] for number in range(count)])


SETTINGS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2},
    {"class_weights": (1.0, 2.0, 3.0, 4.0)},
    {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0, 4.0)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_softmax_is_over_the_labelled_classes_alone(settings: dict[str, Any]) -> None:
    model, y = Given(6, CLASSES), classes()
    found = Classification(**settings).loss(model, batch(y))
    weights = settings.get("class_weights")
    few = {"class_weights": tuple(weights[label] for label in LEFT)} if weights else {}
    small = Given(6, 2)
    small.out = nn.Parameter(model.out.detach()[:, LEFT].clone())
    due = Classification(**{**settings, **few}).loss(small, Batch(torch.zeros(6, 1, 2, 2), y // 2))
    torch.testing.assert_close(found, due)
    gradient, wanted = torch.autograd.grad(found, model.out)[0], torch.autograd.grad(due, small.out)
    assert not gradient[:, [1, 3]].any()
    torch.testing.assert_close(gradient[:, LEFT], wanted[0])


@pytest.mark.parametrize("settings", SETTINGS)
def test_where_all_classes_are_labelled_the_loss_is_as_without_a_mask(
    settings: dict[str, Any],
) -> None:
    model, y = Given(6, CLASSES), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = Classification(**settings).loss(model, batch(y, None))
    masked = Classification(**settings).loss(
        model, batch(y, torch.zeros(CLASSES, dtype=torch.bool))
    )
    torch.testing.assert_close(masked, plain)


def test_a_class_that_an_image_has_is_never_hidden() -> None:
    found = Classification().loss(Given(1, CLASSES), batch(torch.tensor([1])))
    assert bool(found.isfinite())


def test_mixed_images_hide_what_one_of_the_two_may_show() -> None:
    task, y = Classification(), torch.tensor([0, 2])
    hidden = torch.tensor([[False, True, False, False], [False, False, False, True]])
    mixed = task.mixed(Batch(torch.zeros(2, 1, 2, 2), y, hidden), Mixture(0.7), CLASSES)
    assert mixed.unlabelled is not None
    assert mixed.unlabelled.tolist() == [[False, True, False, True]] * 2
    loss = task.loss(Given(2, CLASSES), mixed)
    assert bool(loss.isfinite())


def test_an_answer_is_the_likeliest_of_the_labelled_classes() -> None:
    model = Given(2, CLASSES)
    model.out = nn.Parameter(torch.tensor([[1.0, 9.0, 0.0, 0.0], [0.0, 9.0, 2.0, 5.0]]))
    shown = batch(torch.tensor([0, 0]))
    sums = measured(Classification(metrics=("brier",)), model, shown)
    assert sums["confusion"].total[0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert Classification().right(model, shown).tolist() == [True, False]
    shares = known_shares(torch.softmax(model.out.detach(), 1), shown)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert not shares[:, [1, 3]].any()


def test_labels_that_nobody_looked_for_are_neither_there_nor_absent() -> None:
    y = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    model, task = Given(2, CLASSES), MultiLabel(positive_weight=(1.0, 2.0, 3.0, 4.0))
    found = task.loss(model, batch(y))
    losses = F.binary_cross_entropy_with_logits(
        model.out[:, LEFT], y[:, LEFT], pos_weight=torch.tensor([1.0, 3.0])
    )
    torch.testing.assert_close(found, losses)
    assert not torch.autograd.grad(found, model.out)[0][:, [1, 3]].any()
    sums = measured(task, model, batch(y))
    scores = sums["positives"].total.sum(1) + sums["negatives"].total.sum(1)
    assert scores.tolist() == [2.0, 0.0, 2.0, 0.0]
    assert sums["loss"].total[[1, 3]].tolist() == [0.0, 0.0]
    assert task.is_possible(sums, 4)


def test_background_may_be_a_class_that_is_not_labelled() -> None:
    logits = Given(2, CLASSES, 3, 3).out.detach()
    y = torch.randint(0, 3, (2, 3, 3), generator=torch.Generator().manual_seed(1))
    y = torch.where(y == 1, 0, y)
    y[0, 0, 0] = 255
    merged, truth, labelled = into_background(logits, y, HIDDEN.expand(2, CLASSES))
    shares, whole = torch.softmax(merged, 1), torch.softmax(logits, 1)
    torch.testing.assert_close(shares[:, 0], whole[:, [0, 1, 3]].sum(1))
    torch.testing.assert_close(shares[:, 2], whole[:, 2])
    assert torch.equal(truth, y)
    assert labelled is not None
    assert labelled.flatten(1).tolist() == [[True, False, True, False]] * 2


@pytest.mark.parametrize("dice", [0.0, 0.5])
def test_finding_an_unlabelled_class_in_the_background_costs_nothing(dice: float) -> None:
    model, task = Given(1, CLASSES, 2, 2), Segmentation(dice=dice)
    y = torch.zeros(1, 2, 2, dtype=torch.uint8)
    model.out = nn.Parameter(torch.zeros(1, CLASSES, 2, 2))
    model.out.data[:, 3] = 20.0
    assert float(task.loss(model, batch(y, None)).detach()) > 0.3
    assert float(task.loss(model, batch(y)).detach()) == pytest.approx(0.0, abs=1e-6)
    pixels = measured(task, model, batch(y))["pixels"].total
    assert pixels[0].tolist() == [4.0, 0.0, 0.0, 0.0]


def test_a_truth_of_an_unlabelled_class_counts_as_background() -> None:
    model, y = Given(1, CLASSES, 2, 2), torch.full((1, 2, 2), 3, dtype=torch.uint8)
    assert bool(Segmentation().loss(model, batch(y)).isfinite())
    pixels = measured(Segmentation(), model, batch(y))["pixels"].total
    assert pixels[1:].sum() == 0.0


@pytest.mark.parametrize(("task", "y"), [(Classification(), classes(3)), (MultiLabel(), None)])
def test_each_image_s_gradient_can_be_vectorised(task: Task, y: Tensor | None) -> None:
    targets = torch.eye(CLASSES)[:3] if y is None else y
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES))
    loss, values = LossModule(task, model), dict(model.named_parameters())
    x = torch.rand(3, 1, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    hidden = HIDDEN.expand(3, 1, CLASSES)

    def of_one(weights: dict[str, Tensor], *one: Tensor) -> Any:
        named = {f"model.{name}": value for name, value in weights.items()}
        return torch.func.functional_call(loss, named, one)

    both = torch.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0, 0))
    found = both({k: v.detach() for k, v in values.items()}, x, targets[:, None], hidden)
    for number in range(3):
        alone = loss(x[number], targets[number][None], hidden[number])
        for name, gradient in zip(values, torch.autograd.grad(alone, values.values()), strict=True):
            torch.testing.assert_close(found[name][number], gradient)


class Own(Classification):
    """A loss of its own, which knows of no mask."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Plain cross-entropy."""
        return F.cross_entropy(model(batch.x), batch.y)


def test_only_a_loss_that_says_so_heeds_the_mask() -> None:
    assert Classification().masks
    assert MultiLabel().masks
    assert Segmentation().masks
    assert not Own().masks
    assert not Ordinal().masks
