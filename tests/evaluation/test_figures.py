"""Who is tested on what, and the figures against computations as naive as can be."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError, StoreError
from fedsight.core.types import Sum
from fedsight.data.partition import Groups
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation import comparison as baselines
from fedsight.evaluation.baselines import POOLED
from fedsight.evaluation.comparison import PARTIAL, comparison, jobs
from fedsight.evaluation.description import describe, environment
from fedsight.evaluation.evidence import Evidence
from fedsight.evaluation.figures import Evaluator
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.views import LISTED, View, listed
from fedsight.tasks.averages import balanced_accuracy_interval, macro_f1

CLASSES = 10
opened = cache(
    lambda labels, **sections: federations.federation(
        split={"name": "labels", "sites": 5, "labels": labels},
        **{section: dict(values) for section, values in sections.items()},
    )
)


def answers(count: int, seed: int) -> tuple[Any, Any]:
    """(predicted class, loss) of each test image, made up."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, CLASSES, count), rng.random(count)


def sums(labels: Any, predicted: Any, losses: Any) -> dict[str, Sum]:
    """As the task would measure them."""
    confusion = np.zeros((CLASSES, CLASSES))
    loss = np.zeros(CLASSES)
    for truth, guess, value in zip(labels, predicted, losses, strict=True):
        confusion[truth, guess] += 1
        loss[truth] += value
    return {"confusion": Sum(confusion, len(labels)), "loss": Sum(loss, len(labels))}


def measured(federation: Federation, seed: int = 0) -> tuple[list[dict[str, Sum]], list[Any]]:
    """Made-up sums of every view, and what they were made of."""
    made, raw = [], []
    for number, view in enumerate(federation.views):
        labels = federation.dataset.test.labels[view.indices]
        predicted, losses = answers(len(labels), seed + number)
        made.append(sums(labels, predicted, losses))
        raw.append((labels, predicted, losses))
    return made, raw


def by_mix(federation: Federation, site: int, labels: Any, predicted: Any, losses: Any) -> Any:
    """(accuracy, loss) where class k counts as often as among the site's own images."""
    own = federation.dataset.train.labels[federation.partition.indices(site)]
    accuracy = loss = weight = 0.0
    for label in own:  # each own image stands for the test images of its class
        same = labels == label
        if same.any():
            accuracy += (predicted[same] == label).mean()
            loss += losses[same].mean()
            weight += 1
    return accuracy / weight, loss / weight


# ---------------------------------------------------------------- views


def test_one_model_and_one_test_part() -> None:
    federation = federations.federation()
    assert [view.site for view in federation.views] == [None]
    assert federation.views[0].indices.tolist() == list(range(60))
    assert Evaluator(federation).site_test == "label mix"


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "fedrep"}},
        {"algorithm": {"name": "fedbn"}},
        {"shift": {"kind": "noise", "strength": 0.3}},
    ],
)
def test_sites_that_differ_are_each_tested_on_everything(sections: Any) -> None:
    federation = federations.federation(**sections)
    assert [view.site for view in federation.views] == [0, 1, 2]
    assert all(view.indices.tolist() == list(range(60)) for view in federation.views)
    assert Evaluator(federation).site_test == "whole test part"


@pytest.mark.parametrize("algorithm", ["fedavg", "fedrep"])
def test_images_that_have_an_owner_are_tested_as_the_owners(algorithm: str) -> None:
    federation = federations.federation(data={"owners": 4}, algorithm={"name": algorithm})
    assert [view.site for view in federation.views] == [0, 1, 2, None]
    for number, view in enumerate(federation.views):  # site-03 takes no part: nobody's images
        assert view.indices.tolist() == list(range(number, 60, 4))
    assert Evaluator(federation).site_test == "own images"
    owned = federations.federation(data={"owners": 2})
    assert [view.site for view in owned.views] == [0, 1]


def test_of_a_large_population_the_first_sites_are_listed() -> None:
    federation = federations.federation(
        split={"name": "virtual", "sites": 1000, "samples": 5}, algorithm={"name": "fedrep"}
    )
    assert listed(federation.partition) == range(LISTED) == range(200)
    assert [view.site for view in federation.views] == list(range(200))
    assert len(Evaluator(federation).sites) == 200
    facts = describe(Session(federation), "run")
    assert (facts["population"], len(facts["sites"])) == (1000, 200)
    assert len(jobs(federation)) == 201


def test_what_a_population_or_a_model_cannot_do_is_a_problem(monkeypatch) -> None:
    def problem(**sections: Any) -> Any:
        with pytest.raises(ConfigError) as caught:
            federations.federation(**sections)
        [found] = caught.value.problems
        return found

    assert "a cohort of 4 cannot be drawn from 3 sites" in problem(rounds={"cohort": 4}).cause
    bare = replace(federations.federation().network, norms=frozenset())
    with monkeypatch.context() as patch:
        patch.setattr(Federation, "build", lambda self: bare)
        found = problem(algorithm={"name": "fedbn"})
    assert "fedbn keeps a slice of the model at the site" in found.cause
    assert federations.federation(algorithm={"name": "fedbn"}).views[0].site == 0


# ---------------------------------------------------------------- figures


@given(seed=st.integers(0, 1000))
def test_one_models_figures(seed: int) -> None:
    federation = opened(4)
    made, [(labels, predicted, losses)] = measured(federation, seed)
    figures = Evaluator(federation).figures(made)
    assert figures.overall["accuracy"] == pytest.approx((predicted == labels).mean())
    assert figures.overall["loss"] == pytest.approx(losses.mean())
    assert set(figures.by_site) == {f"site-0{number}" for number in range(5)}
    for site in range(5):
        accuracy, loss = by_mix(federation, site, labels, predicted, losses)
        assert figures.by_site[f"site-0{site}"]["accuracy"] == pytest.approx(accuracy)
        assert figures.by_site[f"site-0{site}"]["loss"] == pytest.approx(loss)
    assert figures.confusion is not None
    for truth, guess in np.ndindex(CLASSES, CLASSES):
        assert figures.confusion[truth, guess] == ((labels == truth) & (predicted == guess)).sum()


@given(seed=st.integers(0, 1000))
def test_models_of_ones_own(seed: int) -> None:
    federation = opened(5, algorithm=(("name", "fedrep"),))
    made, raw = measured(federation, seed)
    evaluator = Evaluator(federation)
    figures = evaluator.figures(made)
    own = [by_mix(federation, site, *raw[site]) for site in range(5)]
    assert [figures.by_site[f"site-0{site}"]["accuracy"] for site in range(5)] == pytest.approx(
        [accuracy for accuracy, _ in own]
    )
    assert figures.overall["accuracy"] == pytest.approx(np.mean([one for one, _ in own]))
    assert figures.overall["loss"] == pytest.approx(np.mean([one for _, one in own]))
    assert figures.confusion is not None
    assert figures.confusion.sum() == 300
    assert evaluator.figures(made, only=1).overall == figures.by_site["site-01"]


@given(seed=st.integers(0, 1000))
def test_own_images(seed: int) -> None:
    federation = opened(3, data=(("owners", 7),))
    made, raw = measured(federation, seed)
    figures = Evaluator(federation).figures(made)
    right = np.concatenate([labels == predicted for labels, predicted, _ in raw])
    assert figures.overall["accuracy"] == pytest.approx(right.mean())
    assert figures.overall["loss"] == pytest.approx(np.concatenate([r[2] for r in raw]).mean())
    assert set(figures.by_site) == {f"site-0{number}" for number in range(5)}
    for site, (labels, predicted, losses) in enumerate(raw[:5]):
        assert figures.by_site[f"site-0{site}"] == {
            "score": pytest.approx((labels == predicted).mean()),
            "accuracy": pytest.approx((labels == predicted).mean()),
            "loss": pytest.approx(losses.mean()),
            "balanced_accuracy": pytest.approx(
                np.mean([(predicted[labels == k] == k).mean() for k in np.unique(labels)])
            ),
            "macro_f1": pytest.approx(macro_f1(made[site]["confusion"].total)),
        }


def test_overall_figures_have_intervals_where_every_image_counts_once() -> None:
    federation = opened(3, data=(("owners", 7),))
    made, _ = measured(federation)
    whole = sum(one["confusion"].total for one in made)
    figures = Evaluator(federation).figures(made, final=True)
    assert set(figures.intervals) == {"accuracy", "balanced_accuracy", "macro_f1"}
    assert figures.intervals["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_interval(whole)
    )
    for name, (low, high) in figures.intervals.items():
        assert low < figures.overall[name] < high
    assert not Evaluator(federation).figures(made).intervals
    personal = opened(3, algorithm=(("name", "fedrep"),))
    assert not Evaluator(personal).figures(measured(personal)[0], final=True).intervals


@pytest.mark.parametrize("algorithm", ["fedavg", "fedrep"])
def test_a_site_whose_classes_nobody_tests_has_no_figures(algorithm: str) -> None:
    whole = federations.federation(algorithm={"name": algorithm})
    labels = whole.dataset.train.labels
    rare = int(labels[0])
    kept = np.flatnonzero(whole.dataset.test.labels != rare)
    groups = [np.flatnonzero(labels == rare), *np.array_split(np.flatnonzero(labels != rare), 2)]
    sites = [None] if algorithm == "fedavg" else [0, 1, 2]
    federation = replace(
        whole, partition=Groups(groups), views=tuple(View(site, kept) for site in sites)
    )
    made, _ = measured(federation)
    evaluator = Evaluator(federation)
    figures = evaluator.figures(made)
    assert set(figures.by_site) == {"site-01", "site-02"}
    assert not math.isnan(figures.overall["accuracy"])
    if algorithm == "fedrep":
        both = [one["accuracy"] for one in figures.by_site.values()]
        assert figures.overall["accuracy"] == pytest.approx(np.mean(both))
        alone = evaluator.figures(made, only=0)
        assert math.isnan(alone.overall["accuracy"])


def test_a_task_without_a_confusion_matrix_has_none() -> None:
    federation = federations.federation()

    class Bare:
        headline = "accuracy"
        mixes = True

        def summary(self, sums: Any, mix: Any = None) -> dict[str, float]:
            return {"accuracy": sums["loss"].mean}

    object.__setattr__(federation, "program", replace(federation.program, task=Bare()))
    made = [{"loss": Sum(np.asarray(3.0), 6)}]
    figures = Evaluator(federation).figures(made)
    assert figures.confusion is None
    assert figures.overall == {"score": 0.5, "accuracy": 0.5}


# ---------------------------------------------------------------- the comparison


def naive(federation: Federation, job: int) -> Any:
    """The baseline's sums, by the round loop without processes."""
    baseline = federation.all_pooled() if job == POOLED else federation.alone(job)
    assert baseline.program.algorithm.registered == "fedavg"
    assert baseline.program.rounds.rounds == federation.program.rounds.rounds
    epochs = 2 if federation.program.algorithm.registered == "fedrep" else 1  # a head's, a body's
    assert baseline.program.train.epochs == epochs
    engine = InProcessEngine(baseline)
    try:
        return run(Session(baseline), engine, lambda _: {}).sums
    finally:
        engine.close()


@pytest.mark.parametrize("algorithm", ["scaffold", "fedrep"])
def test_baselines_are_plain_training_on_the_same_budget(tmp_path: Path, algorithm: str) -> None:
    federation = federations.federation(
        algorithm={"name": algorithm},
        split={"name": "quantity", "sites": 3, "min_samples": 20},
        rounds={"cohort": 2},
    )
    store = RunStore(tmp_path)
    ticks: list[None] = []
    found = baselines.compare(federation, Speed(workers=2), store, lambda: ticks.append(None))
    assert set(found) == {"-1", "0", "1", "2"}
    assert len(ticks) == 4 * 2
    assert store.read_json(PARTIAL) == found
    evaluator = Evaluator(federation)
    for site in range(3):
        figures = evaluator.figures(naive(federation, site), only=site)
        own = figures.by_site[f"site-0{site}"]["accuracy"]
        passes = 2 * (2 if algorithm == "fedrep" else 1)  # in two rounds
        beside = ("evidence", "exam")
        shown = {key: value for key, value in found[str(site)].items() if key not in beside}
        assert shown == {**figures.overall, "own_score": own, "passes": passes}
        right = Evidence.of(found[str(site)]["evidence"]).right
        assert right is not None
        assert right.mean() == pytest.approx(shown["accuracy"]) or algorithm == "fedrep"
    pooled = evaluator.figures(naive(federation, POOLED))
    assert found["-1"]["accuracy"] == pooled.overall["accuracy"]
    assert found["-1"]["by_site"] == {n: one["accuracy"] for n, one in pooled.by_site.items()}
    history = [
        {"round": 1, "sites": ["site-00", "site-01"]},
        {"round": 2, "sites": ["site-01", "site-02"]},
    ]
    whole = comparison(federation, found, pooled, history)
    shown = {key: value for key, value in found["-1"].items() if key != "exam"}
    assert whole["pooled"] == shown
    sizes = np.array([federation.partition.size(site) for site in range(3)])
    seen = passes / 2 * np.array([1, 2, 1])
    assert whole["federated"] == {
        **shown,
        "passes": pytest.approx((sizes * seen).sum() / sizes.sum()),
        "passes_by_site": {f"site-0{site}": seen[site] for site in range(3)},
    }
    assert set(whole["alone"]) == {"site-00", "site-01", "site-02"}
    assert all("evidence" not in one for one in whole["alone"].values())


def test_the_longest_baselines_come_first() -> None:
    federation = federations.federation(split={"name": "quantity", "sites": 3})
    first, *sites = jobs(federation)
    assert first == POOLED
    sizes = [federation.partition.size(site) for site in sites]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(sites) == [0, 1, 2]


def test_finished_baselines_are_not_trained_again(tmp_path: Path, monkeypatch) -> None:
    federation = federations.federation()
    store = RunStore(tmp_path)
    kept = {"-1": {"score": 0.5, "loss": 1.0, "by_site": {}, "passes": 2.0}}
    kept |= {
        str(site): {"score": 0.1 * site, "own_score": None, "passes": 2.0} for site in (0, 1, 2)
    }
    store.write_json(PARTIAL, kept)
    ticks: list[None] = []
    assert baselines.compare(federation, Speed(), store, lambda: ticks.append(None)) == kept
    assert len(ticks) == 8
    del kept["1"]
    store.write_json(PARTIAL, kept)
    found = baselines.compare(federation, Speed(), store, lambda: ticks.append(None))
    assert len(ticks) == 16
    assert {key: found[key] for key in kept} == kept
    assert 0 <= found["1"]["accuracy"] <= 1
    (tmp_path / PARTIAL).write_text("{")
    with pytest.raises(StoreError, match=r"comparison.partial.json"):
        baselines.compare(federation, Speed(), store, lambda: None)


# ---------------------------------------------------------------- facts


def test_facts_of_a_run() -> None:
    federation = federations.federation(split={"name": "labels", "sites": 5, "labels": 2})
    facts = describe(Session(federation), "compare")
    assert facts["command"] == "compare"
    assert facts["fingerprint"] == federation.program.fingerprint
    assert facts["data"]["train"] == sum(site["samples"] for site in facts["sites"]) == 120
    labels = np.array([site["labels"] for site in facts["sites"]])
    assert ((labels > 0).sum(axis=1) == 2).all()
    assert labels.sum(axis=0).tolist() == np.bincount(federation.dataset.train.labels).tolist()
    assert facts["classes"][0] == "T-shirt/top"
    assert facts["preprocess"]["height"] == 14
    assert facts["rounds"] == 2
    assert facts["environment"]["torch"] == torch.__version__


def test_a_machine_that_does_not_name_its_processor(monkeypatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert isinstance(environment()["processor"], str)
