"""A task joins learning, evaluation and presentation, and each can be replaced by itself."""

from __future__ import annotations

import inspect
from abc import ABC

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.types import Batch
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification
from fedsight.tasks.evaluation import Evaluation
from fedsight.tasks.learning import Learning
from fedsight.tasks.presentation import Presentation

PARTS = (Learning, Evaluation, Presentation)


def own(part: type[ABC]) -> set[str]:
    """The public names that a class defines itself."""
    return {name for name in vars(part) if not name.startswith(("_", "model_"))}


def test_the_three_parts_share_no_name_and_a_task_adds_none() -> None:
    names = [own(part) for part in PARTS]
    assert sum(map(len, names)) == len(set().union(*names))
    assert not own(Task)
    abstract = {name for part in PARTS for name in part.__abstractmethods__}
    assert abstract == Task.__abstractmethods__ == {"loss", "measure", "summary", "predict"}


def test_every_part_says_who_calls_it() -> None:
    for part, caller in zip(PARTS, ("client step", "evaluator", "fedsight predict"), strict=True):
        assert caller in inspect.getdoc(part)


class Focal(Classification):
    """Trains with the focal loss; measured and shown as classification is."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """(1 - p)^2 times the cross-entropy, mean over the batch."""
        losses = F.cross_entropy(model(batch.x), batch.y, reduction="none")
        return ((1 - torch.exp(-losses)).square() * losses).mean()


def test_a_task_that_trains_differently_overrides_learning_alone() -> None:
    batch = Batch(torch.tensor([[2.0, 0.0], [0.5, 0.1]]), torch.tensor([0, 1]))
    focal, plain, model, classes = Focal(), Classification(), nn.Identity(), ("a", "b")
    assert float(focal.loss(model, batch)) < float(plain.loss(model, batch))
    sums = [task.summary(task.measure(model, batch, 2)) for task in (focal, plain)]
    assert sums[0] == sums[1]
    assert focal.answers(model, batch.x, classes) == plain.answers(model, batch.x, classes)
