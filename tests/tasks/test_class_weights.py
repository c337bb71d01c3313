"""Class weights, label smoothing and mixed targets in the losses of the tasks."""

from __future__ import annotations

from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.errors import ConfigError
from fedsight.core.types import Batch
from fedsight.data.augment.base import Mixture
from fedsight.tasks import class_weights
from fedsight.tasks.base import Task
from fedsight.tasks.classification import Classification
from fedsight.tasks.multilabel import MultiLabel
from fedsight.tasks.ordinal import Ordinal

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 3, 3, 2])
MODEL = nn.Linear(5, 4)
KINDS: list[type[Classification] | type[Ordinal]] = [Classification, Ordinal]


def loss(task: Task, y: Tensor = Y, rows: slice = slice(None)) -> Tensor:
    return task.loss(MODEL, Batch(X[rows], y[rows]))


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=50).map(torch.tensor))
def test_weights_by_counts_have_mean_1_and_give_classes_equal_parts(labels: Tensor) -> None:
    found = torch.tensor(class_weights.of_counts(labels, 7), dtype=torch.float64)
    each = found[labels]
    assert float(each.mean()) == pytest.approx(1.0)
    parts = [float(each[labels == kind].sum()) for kind in labels.unique()]
    assert parts == pytest.approx([parts[0]] * len(parts))


def test_they_are_scikit_learns_balanced_weights() -> None:
    """n_samples / (n_classes * bincount), for classes that are all there."""
    expected = 12 / (4 * torch.bincount(Y).double())
    assert class_weights.of_counts(Y, 4) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_1_are_no_weights(kind: Any) -> None:
    torch.testing.assert_close(loss(kind(class_weights=(1.0,) * 4)), loss(kind()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_each_image_of_its_class_so_often(kind: Any) -> None:
    weights = (1.0, 2.0, 5.0, 3.0)
    often = torch.repeat_interleave(torch.arange(12), torch.tensor(weights)[Y].long())
    expected = kind().loss(MODEL, Batch(X[often], Y[often])) * len(often) / 12
    torch.testing.assert_close(loss(kind(class_weights=weights)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_images_weight_does_not_depend_on_the_others_in_its_batch(kind: Any) -> None:
    task = kind(class_weights=(1.0, 2.0, 5.0, 3.0))
    alone = [loss(task, rows=slice(at, at + 1)) for at in range(12)]
    torch.testing.assert_close(torch.stack(alone).mean(), loss(task))


def test_weighted_cross_entropy_is_pytorchs_but_for_the_divisor() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0, 3.0])
    task = Classification(class_weights=tuple(weights.tolist()), label_smoothing=0.1)
    theirs = F.cross_entropy(MODEL(X), Y, weights, label_smoothing=0.1)
    torch.testing.assert_close(loss(task), theirs * weights[Y].sum() / 12)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_site_its_own_counts_are_used_and_others_are_left(kind: Any) -> None:
    task = kind(class_weights="site")
    assert task.counts_labels
    assert task.at(Y, 4).class_weights == class_weights.of_counts(Y, 4)
    assert not task.at(Y, 4).counts_labels
    plain = kind(class_weights=(1.0, 1.0, 1.0, 2.0))
    assert plain.at(Y, 4) is plain
    assert kind().at(Y, 4) == kind()


@pytest.mark.parametrize("kind", [*KINDS, MultiLabel])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0, 3.0)])
def test_soft_targets_of_one_class_are_the_class(kind: Any, weights: Any) -> None:
    task = kind() if weights is None or kind is MultiLabel else kind(class_weights=weights)
    y = (torch.rand(12, 4) > 0.5).float() if kind is MultiLabel else Y
    assert task.blends
    torch.testing.assert_close(loss(task, task.soft(y, 4)), loss(task, y))


@pytest.mark.parametrize("kind", [*KINDS, MultiLabel])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0, 3.0)])
def test_the_loss_of_a_mixed_target_is_the_mixed_loss(kind: Any, weights: Any) -> None:
    """Zhang et al. 2018, section 3: both targets on the same, mixed, image."""
    task = kind() if weights is None or kind is MultiLabel else kind(class_weights=weights)
    y = (torch.rand(12, 4) > 0.5).float() if kind is MultiLabel else Y
    found = loss(task, Mixture(0.7).of(task.soft(y, 4)))
    torch.testing.assert_close(found, 0.7 * loss(task, y) + 0.3 * loss(task, y.roll(1, 0)))


def test_smoothing_0_is_none_and_of_two_classes_it_is_that_of_cross_entropy() -> None:
    y = (torch.rand(12, 4) > 0.5).float()
    assert torch.equal(loss(MultiLabel(label_smoothing=0.0), y), loss(MultiLabel(), y))
    logits = MODEL(X)
    pairs = torch.stack([torch.zeros_like(logits), logits], dim=1)  # softmax over none, present
    expected = F.cross_entropy(pairs, y.long(), label_smoothing=0.2)
    torch.testing.assert_close(loss(MultiLabel(label_smoothing=0.2), y), expected)


class Own(Classification):
    """A loss of its own, which takes class numbers only."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy by hand."""
        return -model(batch.x).log_softmax(1).gather(1, batch.y[:, None]).mean()


class OwnSoft(Own):
    """Another that takes soft targets too."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of PyTorch."""
        return F.cross_entropy(model(batch.x), batch.y)

    def soft(self, targets: Tensor, classes: int) -> Tensor:
        """Rows."""
        return super().soft(targets, classes)


def test_a_loss_of_ones_own_mixes_only_if_it_says_so() -> None:
    assert not Own().blends
    assert OwnSoft().blends


@pytest.mark.parametrize(
    ("task", "where", "cause"),
    [
        (Own(class_weights="site"), "task.class_weights", "loss of its own"),
        (Own(label_smoothing=0.1), "task.label_smoothing", "loss of its own"),
        (Own(calibration=1.0), "task.calibration", "loss of its own"),
        (Classification(calibration=1.0, label_smoothing=0.1), "task.calibration", "smoothing"),
        (Classification(class_weights="federation"), "task.class_weights", "does not know"),
        (Ordinal(class_weights="federation"), "task.class_weights", "does not know"),
    ],
)
def test_what_would_be_ignored_is_refused(task: Task, where: str, cause: str) -> None:
    (problem,) = task.check_settings()
    assert problem.where == where
    assert cause in problem.cause


COUNTED = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 3, 3, 3])  # none of class 2


def test_calibrated_loss_is_that_of_fedlc() -> None:
    """Zhang et al. 2022: -log of e^(f_y - tau n_y^-1/4) over the sum of these for all classes."""
    task = Classification(calibration=0.7)
    assert task.counts_labels
    own = task.at(COUNTED, 4)
    assert not own.counts_labels
    scores = MODEL(X).detach().double().numpy()
    shifted = np.exp(scores - 0.7 * np.array([6.0, 3.0, 1e-8, 3.0]) ** -0.25)
    expected = -np.log(shifted[np.arange(12), COUNTED.numpy()] / shifted.sum(1)).mean()
    assert loss(own, COUNTED).item() == pytest.approx(expected, rel=1e-6)
    weighted = Classification(calibration=0.7, class_weights="site").at(COUNTED, 4)
    assert weighted.class_weights == class_weights.of_counts(COUNTED, 4)
    assert loss(weighted, COUNTED).item() != pytest.approx(expected, rel=1e-3)


def test_calibration_leaves_alone_what_a_site_has_no_image_of() -> None:
    for task, touched in ((Classification(), True), (Classification(calibration=1.0), False)):
        loss(task.at(COUNTED, 4), COUNTED).backward()
        assert bool(MODEL.weight.grad[2].abs().max() > 1e-6) == touched
        MODEL.zero_grad()


def test_calibration_of_equal_counts_is_none_and_measures_nothing_else() -> None:
    even = torch.arange(12) % 4
    own = Classification(calibration=1.0).at(even, 4)
    torch.testing.assert_close(loss(own, even), loss(Classification(), even))
    rare, batch = Classification(calibration=1.0).at(COUNTED, 4), Batch(X, COUNTED)
    with torch.no_grad():
        found, plain = rare.measure(MODEL, batch, 4), Classification().measure(MODEL, batch, 4)
        assert torch.equal(rare.predict(MODEL, X), Classification().predict(MODEL, X))
    assert federations.same_sums([found], [plain])


def test_there_is_a_weight_for_each_class() -> None:
    with pytest.raises(ConfigError, match="3 weights are given, but the data have 10 classes"):
        federations.federation(task={"class_weights": [1.0, 2.0, 3.0]})


def test_a_run_with_weights_from_the_sites_differs_from_one_without() -> None:
    split = {"name": "dirichlet", "alpha": 0.3, "sites": 3}
    shas = {
        federations.sha(federations.learn(federations.federation(split=split, task=task)).vector)
        for task in (
            {},
            {"class_weights": "site"},
            {"class_weights": [1.0] * 9 + [4.0]},
            {"calibration": 1.0},
        )
    }
    assert len(shas) == 4
