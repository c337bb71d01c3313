"""Classification measured: sums that add, figures that equal the naive ones."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from fedsight.core.types import Batch, Sum, add_metrics
from fedsight.tasks.base import tasks
from fedsight.tasks.classification import Classification

CLASSES = 4


def measured(logits: Tensor, y: Tensor) -> dict[str, Sum]:
    """What `measure` gives for these logits: the model is the identity."""
    return dict(Classification().measure(nn.Identity(), Batch(logits, y), CLASSES))


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    labels = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    logits = torch.from_numpy(rng.normal(size=(len(labels), CLASSES)).astype(np.float32))
    return logits, torch.tensor(labels)


@given(answers())
def test_figures_equal_the_naive_ones(case: tuple[Tensor, Tensor]) -> None:
    logits, y = case
    sums = measured(logits, y)
    losses = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    right = [max(range(CLASSES), key=row.__getitem__) for row in logits.tolist()]
    figures = Classification().summary(sums)
    hits = sum(a == b for a, b in zip(right, y.tolist(), strict=True))
    assert figures["accuracy"] == pytest.approx(hits / len(y), abs=1e-12)
    assert figures["loss"] == pytest.approx(sum(losses) / len(y), rel=1e-5)
    confusion = np.zeros((CLASSES, CLASSES))
    for true, found in zip(y.tolist(), right, strict=True):
        confusion[true, found] += 1
    assert np.array_equal(sums["confusion"].total, confusion)
    assert sums["confusion"].count == sums["loss"].count == len(y)


@given(answers(), st.integers(0, 30))
def test_sums_of_batches_equal_the_sums_of_the_whole(case, cut: int) -> None:
    logits, y = case
    parts = [(logits[:cut], y[:cut]), (logits[cut:], y[cut:])]
    added = add_metrics([measured(*part) for part in parts if len(part[1])])
    whole = measured(logits, y)
    assert np.array_equal(added["confusion"].total, whole["confusion"].total)
    np.testing.assert_allclose(added["loss"].total, whole["loss"].total, rtol=1e-12)


@given(answers(), st.lists(st.integers(0, 5), min_size=CLASSES, max_size=CLASSES))
def test_figures_under_a_label_mix_equal_those_of_a_resampled_test_set(case, copies) -> None:
    """Repeat each image of class k copies[k] * L / n_k times (a whole number): counted, exact."""
    logits, y = case
    counts = np.bincount(y.numpy(), minlength=CLASSES)
    least = math.lcm(*(int(count) for count in counts if count))
    repeats = torch.tensor(
        [copies[k] * least // int(counts[k]) if counts[k] else 0 for k in range(CLASSES)]
    )
    mix = np.asarray(copies, dtype=np.float64)
    figures = Classification().summary(measured(logits, y), mix / max(mix.sum(), 1))
    resampled = torch.repeat_interleave(torch.arange(len(y)), repeats[y])
    if len(resampled) == 0:
        assert all(math.isnan(value) for value in figures.values())
        return
    hits = int((logits[resampled].argmax(1) == y[resampled]).sum())
    assert figures["accuracy"] == pytest.approx(hits / len(resampled), abs=1e-12)
    direct = Classification().summary(measured(logits[resampled], y[resampled]))
    assert figures["loss"] == pytest.approx(direct["loss"], rel=1e-9)


def sums_of(confusion: npt.ArrayLike, loss: npt.ArrayLike) -> dict[str, Sum]:
    counts = np.asarray(confusion, dtype=np.float64)
    total = int(counts.sum())
    return {"confusion": Sum(counts, total), "loss": Sum(np.asarray(loss, float), total)}


def test_classes_that_no_test_image_has_are_left_out() -> None:
    sums = sums_of([[3, 1], [0, 0]], [2.0, 0.0])
    half = np.array([0.5, 0.5])
    seen = {"accuracy": 0.75, "loss": 0.5, "balanced_accuracy": 0.75, "macro_f1": 6 / 7}
    assert Classification().summary(sums) == pytest.approx(seen)
    assert Classification().summary(sums, half) == pytest.approx(seen)
    nothing = Classification().summary(sums, np.array([0.0, 1.0]))
    assert all(math.isnan(nothing[figure]) for figure in Classification.figures)


def test_training_loss_is_smoothed_cross_entropy_and_measures_are_not() -> None:
    logits, y = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3]]), torch.tensor([0, 2])
    logs = logits.double().log_softmax(1).numpy()
    target = np.full((2, 3), 0.3 / 3)
    target[[0, 1], [0, 2]] += 0.7
    smooth = Classification(label_smoothing=0.3)
    batch = Batch(logits, y)
    assert float(smooth.loss(nn.Identity(), batch)) == pytest.approx(-(target * logs).sum() / 2)
    plain = -(logs[0, 0] + logs[1, 2]) / 2
    assert float(Classification().loss(nn.Identity(), batch)) == pytest.approx(plain)
    assert smooth.summary(smooth.measure(nn.Identity(), batch, 3))["loss"] == pytest.approx(plain)


def test_predictions_are_probabilities() -> None:
    found = Classification().predict(nn.Identity(), torch.tensor([[0.0, math.log(3.0)]]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75]]))
    half = Classification().predict(nn.Identity(), torch.zeros(1, 2, dtype=torch.bfloat16))
    assert half.dtype == torch.float32


def test_task_is_registered_and_its_settings_are_checked() -> None:
    assert tasks.get("classify") is Classification
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValidationError):
            Classification(label_smoothing=wrong)
