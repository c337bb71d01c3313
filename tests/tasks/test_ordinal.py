"""Grades: the loss is the likelihood of what is predicted, kappa is Cohen's with squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsight.core.types import Batch, Sum, add_metrics
from fedsight.tasks.ordinal import Ordinal

CLASSES = ("0", "1", "2", "3", "4")
TASK = Ordinal()


class Given(nn.Module):
    """Answers with what it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


MODEL = Given()
rows = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5)


@given(rows, st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_the_loss_is_minus_the_log_of_what_is_predicted(row: list[float], grade: int) -> None:
    logits, y = torch.tensor([row], dtype=torch.float64), torch.tensor([grade])
    probabilities = TASK.predict(MODEL, logits.float()).double()[0]
    assert float(probabilities.min()) >= -1e-6
    assert float(probabilities.sum()) == pytest.approx(1)
    likelihood = torch.sigmoid(logits[0, :grade]).prod()
    if grade < 4:
        likelihood = likelihood * (1 - torch.sigmoid(logits[0, grade]))
    assert float(TASK.loss(MODEL, Batch(logits, y))) == pytest.approx(
        -float(likelihood.log()), rel=1e-6
    )
    assert float(probabilities[grade]) == pytest.approx(float(likelihood), abs=1e-6)


def summary(confusion: list[list[float]], mix: list[float] | None = None) -> dict[str, float]:
    total = np.array(confusion, np.float64)
    sums = {"confusion": Sum(total, int(total.sum())), "loss": Sum(total.sum(1), 1)}
    return TASK.summary(sums, None if mix is None else np.array(mix))


def test_kappa_has_known_values() -> None:
    assert summary([[5, 0, 0], [0, 3, 0], [0, 0, 9]])["kappa"] == 1
    assert summary([[0, 5], [5, 0]])["kappa"] == pytest.approx(-1)
    assert summary([[0, 5, 0], [0, 3, 0], [0, 9, 0]])["kappa"] == pytest.approx(0)
    # Two raters of ten: disagreements of one step cost 1, of two steps 4.
    table = [[2, 1, 0], [0, 3, 1], [1, 0, 2]]
    observed = (1 + 1 + 4) / 10
    by_row, by_column = [3, 4, 3], [3, 4, 3]
    expected = sum(
        (i - j) ** 2 * by_row[i] * by_column[j] / 100 for i in range(3) for j in range(3)
    )
    found = summary(table)
    assert found["kappa"] == pytest.approx(1 - observed / expected)
    assert found["mae"] == pytest.approx((1 + 1 + 2) / 10)
    assert found["accuracy"] == pytest.approx(0.7)
    assert np.isnan(summary([[4, 0], [0, 0]])["kappa"])
    assert all(np.isnan(value) for value in summary([[0, 0], [0, 0]]).values())


def test_a_mix_is_as_if_there_were_so_many_images() -> None:
    table = [[2, 1, 0], [0, 3, 1], [1, 0, 2]]
    assert summary(table, [0.3, 0.4, 0.3]) == pytest.approx(summary(table))
    doubled = [[4, 2, 0], [0, 3, 1], [1, 0, 2]]
    assert summary(table, [6 / 13, 4 / 13, 3 / 13]) == pytest.approx(summary(doubled))
    unseen = [[2, 1, 0], [0, 0, 0], [1, 0, 2]]
    assert summary(unseen, [0.25, 0.5, 0.25]) == pytest.approx(summary(unseen))


def batch(count: int = 200) -> Batch:
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (count,), generator=draws)
    return Batch(torch.randn(count, 5, generator=draws) * 2 + (y[:, None] - 2), y)


def test_sums_add_and_agree_with_the_answers() -> None:
    given = batch()
    halves = [Batch(given.x[:90], given.y[:90]), Batch(given.x[90:], given.y[90:])]
    added = add_metrics([TASK.measure(MODEL, half, 5) for half in halves])
    whole = TASK.measure(MODEL, given, 5)
    assert np.array_equal(added["confusion"].total, whole["confusion"].total)
    said = [int(answer.label) for answer in TASK.answers(MODEL, given.x, CLASSES)]
    off = np.abs(np.array(said) - given.y.numpy()).mean()
    assert TASK.summary(whole)["mae"] == pytest.approx(off)
    rows = TASK.tables(whole, CLASSES)[0].rows
    assert sum(float(row[1] or 0) * float(row[4] or 0) for row in rows) / 200 == pytest.approx(off)
    assert all(float(row[2] or 0) <= float(row[3] or 0) <= 1 for row in rows)


def test_the_answer_is_the_median() -> None:
    logits = torch.tensor([[9.0, 0.1, -9.0, 0.0, 0.0], [-9.0, 9.0, 9.0, 9.0, 0.0]])
    answers = TASK.answers(MODEL, logits, CLASSES)
    assert [answer.label for answer in answers] == ["2", "0"]  # an unreached step says nothing
    assert list(answers[0].details["probabilities"]) == list(CLASSES)
    assert answers[0].details["expected"] == pytest.approx(1.52, abs=0.02)


def test_the_worst_mistakes_come_first() -> None:
    found = TASK.samples(MODEL, batch(60), CLASSES)
    apart = [abs(int(sample.truth) - int(sample.predicted)) for sample in found]
    assert apart == sorted(apart, reverse=True)
    assert all(sample.right == (sample.truth == sample.predicted) for sample in found)


def test_it_learns_an_order() -> None:
    """One number rises with the grade; a linear layer finds the steps."""
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (300,), generator=draws)
    x = (y + torch.randn(300, generator=draws) * 0.3)[:, None]
    model = nn.Linear(1, 5)
    nn.init.zeros_(model.weight)
    steps = torch.optim.Adam(model.parameters(), lr=0.3)
    for _ in range(90):
        steps.zero_grad()
        TASK.loss(model, Batch(x, y)).backward()
        steps.step()
    with torch.no_grad():
        figures = TASK.summary(TASK.measure(model, Batch(x, y), 5))
    assert figures["kappa"] > 0.93
    assert figures["mae"] < 0.15
    assert model.weight.grad is not None
    assert not model.weight.grad[4].any()  # the output that has no meaning
