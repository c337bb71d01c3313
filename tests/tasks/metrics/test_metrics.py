"""Metrics by name: equal to naive figures, adding over batches, and part of summary and history."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import federations
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsight.core.errors import ConfigError
from fedsight.core.types import Batch, Sum, add_metrics
from fedsight.tasks.base import tasks
from fedsight.tasks.classification import Classification
from fedsight.tasks.metrics.base import Metric, Mix, by_class, image_mean, metrics
from fedsight.tasks.ordinal import Ordinal
from fedsight.tasks.single_label import RESERVED, SingleLabel

CLASSES = 8
Floats = npt.NDArray[np.float64]


@st.composite
def answers(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Probabilities [n, classes] with ties among them, and class numbers [n]."""
    labels = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    counts = rng.integers(1, draw(st.sampled_from([3, 1000])), (len(labels), CLASSES))
    return counts / counts.sum(1, keepdims=True), np.array(labels)


def naive_brier(p: Floats, y: Floats) -> float:
    scores = [np.sum((row - np.eye(CLASSES)[t]) ** 2) for row, t in zip(p, y, strict=True)]
    return float(np.mean(scores))


def naive_top_5(p: Floats, y: Floats) -> float:
    ranked = np.argsort(-p, axis=1, kind="stable")[:, :5]
    return float(np.mean([t in row for row, t in zip(ranked, y, strict=True)]))


ORACLES: dict[str, Callable[[Floats, Floats], float]] = {
    "brier": naive_brier,
    "top_5": naive_top_5,
}


def measured(name: str, p: Floats, y: Floats) -> Sum:
    return metrics.get(name)().measure(torch.from_numpy(p), torch.from_numpy(y), CLASSES)


@pytest.mark.parametrize("name", ORACLES)
@given(case=answers())
def test_figures_equal_naive_ones(name: str, case: tuple[Floats, Floats]) -> None:
    found = metrics.get(name)().value(measured(name, *case), None)
    assert found == pytest.approx(ORACLES[name](*case), abs=1e-12)


@pytest.mark.parametrize("name", ORACLES)
@given(case=answers(), cut=st.integers(0, 30))
def test_sums_of_batches_are_those_of_the_whole(name: str, case: Any, cut: int) -> None:
    p, y = case
    added = measured(name, p[:cut], y[:cut]) + measured(name, p[cut:], y[cut:])
    whole = measured(name, p, y)
    np.testing.assert_allclose(added.total, whole.total, rtol=1e-12)
    assert added.count == whole.count == len(y)


@pytest.mark.parametrize("name", ORACLES)
@given(case=answers(), copies=st.lists(st.integers(0, 4), min_size=CLASSES, max_size=CLASSES))
def test_a_label_mix_gives_the_figure_of_a_resampled_test_set(
    name: str, case: Any, copies: list[int]
) -> None:
    """Repeat the images of each class until the classes are as frequent as `copies` says."""
    p, y = case
    counts = np.bincount(y, minlength=CLASSES)
    least = math.lcm(*(int(count) for count in counts if count))
    repeats = np.array([copies[k] * least // max(1, counts[k]) for k in range(CLASSES)])
    mix = np.asarray(copies, np.float64) / max(1, sum(copies))
    found = metrics.get(name)().value(measured(name, p, y), mix)
    if not repeats[y].any():
        assert math.isnan(found)
        return
    again = np.repeat(np.arange(len(y)), repeats[y])
    assert found == pytest.approx(ORACLES[name](p[again], y[again]), abs=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_without_images_nothing_is_measured(name: str) -> None:
    nothing = measured(name, np.zeros((0, CLASSES)), np.zeros(0, np.int64))
    assert math.isnan(metrics.get(name)().value(nothing, None))
    assert math.isnan(metrics.get(name)().value(nothing, np.full(CLASSES, 1 / CLASSES)))


def test_an_answer_that_is_not_a_number_is_never_among_the_best() -> None:
    p = np.full((1, CLASSES), np.nan)
    assert metrics.get("top_5")().value(measured("top_5", p, np.array([0])), None) == 0


@pytest.mark.parametrize("task", ["classify", "ordinal"])
def test_a_task_measures_the_probabilities_that_it_predicts(task: str) -> None:
    draws = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(40, CLASSES, generator=draws), torch.randint(CLASSES, (40,), generator=draws)
    )
    plain, extended = tasks.get(task)(), tasks.get(task)(metrics=list(ORACLES))
    p = plain.predict(nn.Identity(), batch.x).double().numpy()
    parts = [Batch(batch.x[:13], batch.y[:13]), Batch(batch.x[13:], batch.y[13:])]
    sums = add_metrics([extended.measure(nn.Identity(), part, CLASSES) for part in parts])
    figures = extended.summary(sums)
    for name, oracle in ORACLES.items():
        assert figures.pop(name) == pytest.approx(oracle(p, batch.y.numpy()), abs=1e-6)
    assert figures == pytest.approx(
        plain.summary(plain.measure(nn.Identity(), batch, CLASSES)), rel=1e-12
    )


def test_without_metrics_no_sum_is_added() -> None:
    sums = Classification().measure(nn.Identity(), Batch(torch.eye(3), torch.arange(3)), 3)
    assert set(sums) == {"confusion", "loss"}


@pytest.mark.parametrize(
    ("names", "cause", "cure"),
    [
        (["brie"], "there is no metric 'brie'", "did you mean 'brier'?"),
        (["brier", "brier"], "the metric 'brier' is named twice", "name it once"),
        (["macro_f1"], "the task 'classify' always measures 'macro_f1'", "leave it out"),
    ],
)
def test_metrics_that_cannot_be_are_refused(names: list[str], cause: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        federations.federation(task={"metrics": names})
    (problem,) = caught.value.problems
    assert (problem.where, problem.cause, problem.cure) == ("task.metrics", cause, cure)


@pytest.fixture
def own_metric(monkeypatch: pytest.MonkeyPatch) -> str:
    """A metric from outside the package, gone after the test."""
    metrics.names()  # the package's own are there before the registry is copied
    for table in ("_classes", "_facts"):
        monkeypatch.setattr(metrics, table, dict(getattr(metrics, table)))

    @metrics.add("confidence")
    class Confidence(Metric):
        """The mean probability of the answer."""

        def measure(self, probabilities: Tensor, targets: Tensor, classes: int) -> Sum:
            return by_class(probabilities.max(1).values, targets, classes)

        def value(self, sum: Sum, mix: Mix | None) -> float:
            return image_mean(sum, mix)

    return "confidence"


def test_a_metric_from_outside_costs_one_class(own_metric: str) -> None:
    diary = federations.Diary()
    of = federations.federation(task={"metrics": [own_metric]})
    federations.learn(of, diary=diary)
    assert all(0.1 <= line[own_metric] <= 1 for line in diary.lines)


@pytest.mark.usefixtures("own_metric")
@pytest.mark.parametrize("task", [Classification, Ordinal])
def test_a_metric_cannot_take_a_name_that_is_taken(task: type[SingleLabel]) -> None:
    for name in ("score", "rounds", *task.figures):
        metrics.add(name)(type("Taken", (Metric,), {"__doc__": "A name that is taken."}))
        (problem,) = task(metrics=[name]).check_settings()
        assert (
            problem.cause == f"the metric '{name}' has the name of another entry of a run's files"
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run without metrics, and the same with two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, task in (("plain", {}), ("more", {"metrics": list(ORACLES)})):
        config = command_line.write_config(folder, name, task={"name": "classify", **task})
        command_line.done("run", config, "--out", folder / name, "--workers", "1")
    return folder / "plain", folder / "more"


def test_figures_reach_the_summary_and_the_history_and_change_nothing_else(runs: Any) -> None:
    plain, more = ([command_line.read(run), *command_line.history(run)] for run in runs)
    for without, with_metrics in zip(plain, more, strict=True):
        for name in ORACLES:
            assert 0 <= with_metrics[name] <= 2
            assert name not in without
        for key in ("score", "accuracy", "loss"):
            assert with_metrics[key] == without[key]
    assert plain[0]["model_sha256"] == more[0]["model_sha256"]


def test_every_other_entry_of_a_runs_files_is_reserved(runs: Any) -> None:
    plain = runs[0]
    entries = {
        key for table in (command_line.read(plain), *command_line.history(plain)) for key in table
    }
    assert entries - set(Classification.figures) <= RESERVED
