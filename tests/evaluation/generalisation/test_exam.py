"""Exams: the same images for all models, none that a model had no chance with, and never the rows
that frozen layers made of clean images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch

from fedsight.client.step import Client
from fedsight.data.corruptions import CORRUPTIONS, SEVERITIES
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.generalisation import exam
from fedsight.evaluation.generalisation.exam import (
    Exam,
    Examiner,
    examined,
    learnt,
    unasked,
    unexamined,
)
from fedsight.evaluation.generalisation.told import _Arm
from fedsight.program.federation import Federation
from fedsight.program.kept import keep
from fedsight.program.program import Speed
from fedsight.report.trust_records import GapRecord

ASKED: dict[str, Any] = {"trust": {"robustness": True}}


def loaded(federation: Federation) -> Client:
    client = Client(federation, Speed())
    client.load(federation.initial[federation.layout.travelling], {})
    return client


def examiner(federation: Federation) -> Examiner:
    return Examiner(federation, Evaluator(federation), loaded(federation))


def test_shares_are_those_of_the_images_answered_one_by_one() -> None:
    federation = federations.federation(**ASKED)
    client, found = loaded(federation), examiner(federation).of_all()
    data, kind = federation.tested(federation.views[0]), CORRUPTIONS["contrast"]
    client.model.eval()
    with torch.inference_mode():
        for severity in range(1, SEVERITIES + 1):
            right = 0
            for at in range(len(data)):
                place = torch.tensor([at])
                pixels = kind.apply(data.pixels(place), severity, data.indices[place])
                batch = client.batch(data, place, pixels)
                right += int(client.model(batch.x).argmax(1) == batch.y)
            assert found.corrupted["contrast"][severity - 1] == pytest.approx(right / len(data))
    assert found.images == 120
    trained = federation.client(0), federation.client(1), federation.client(2)
    right = sum(client.measure_all(one)["confusion"].total.trace() for one in trained)
    assert found.trained == pytest.approx(right / 120)


def test_frozen_layers_see_the_corrupted_image_though_rows_of_the_clean_one_are_kept() -> None:
    frozen: dict[str, Any] = {"train": {"only": ["head"]}, **ASKED}
    plain, kept = federations.federation(**frozen), federations.federation(**frozen)
    keep(kept, Speed())
    assert kept.kept is not None
    assert examiner(plain).of_all() == examiner(kept).of_all()


def test_a_sites_figure_is_in_its_mix_of_labels() -> None:
    federation = federations.federation(split={"name": "labels", "sites": 10, "labels": 1}, **ASKED)
    client, of = loaded(federation), examiner(federation)
    labels = federation.dataset.test.labels
    for site in range(10):
        (label,) = np.unique(federation.client(site).labels().numpy())
        data = federation.tested(federation.views[0])
        with torch.inference_mode():
            batch = client.batch(data, torch.from_numpy(np.flatnonzero(labels == label)))
            right = float((client.model.eval()(batch.x).argmax(1) == batch.y).double().mean())
        assert of.of_site(site).clean == pytest.approx(right)


def test_all_models_of_a_comparison_get_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "TRAINED", 30)
    federation = federations.federation(rounds={"validation": 0.4})
    drawn = learnt(federation)
    trained = {place for site in range(3) for place in federation.client(site).indices.tolist()}
    assert set(drawn.indices.tolist()) <= trained
    assert len(drawn) == 30
    shares = []
    for site in range(3):
        baseline = federation.alone(site)
        client = loaded(baseline)
        found = examined(federation, Evaluator(baseline), client, site)
        assert found is not None
        assert found.images == int((drawn.origins == site).sum())
        shares.append(found)
    whole = examined(federation, Evaluator(federation), loaded(federation), None)
    assert whole is not None
    assert sum(one.images for one in shares) == whole.images == 30


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"trust": {"measured": False}}, "trust.measured is false"),
        (
            {
                "privacy": {"name": "central", "epsilon": 3.0, "clip": 1.0},
                "rounds": {"weighting": "uniform"},
            },
            "noise protects",
        ),
        ({"secure": {"name": "secagg"}}, "masked"),
    ],
)
def test_what_would_travel_around_the_door_is_not_examined(
    sections: dict[str, Any], reason: str
) -> None:
    federation = federations.federation(**sections)
    assert reason in str(unexamined(federation, local=True))
    assert examined(federation, Evaluator(federation), loaded(federation), None) is None


def test_an_exam_is_kept_as_it_was() -> None:
    found = examiner(federations.federation(**ASKED)).of_all()
    assert Exam.of(found.plain()) == found
    for broken in (
        {},
        {**found.plain(), "trained": "x"},
        {**found.plain(), "trained": float("nan")},
        {**found.plain(), "clean": 7},
        {**found.plain(), "images": -5},
        {**found.plain(), "tested": 10**400},
        {**found.plain(), "corrupted": 3},
        {**found.plain(), "corrupted": {"noise": [0.5] * 5}},
    ):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError, OverflowError)):
            Exam.of(broken)


def test_runs_with_other_seeds_are_asked_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that seeds share is compared with each of them."""
    monkeypatch.setattr(exam, "TRAINED", 30)
    asked = [set(learnt(federations.federation(seed=seed)).indices.tolist()) for seed in (1, 2)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 30


def test_an_exam_that_fails_costs_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = federations.federation(**ASKED)

    def fails(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Examiner, "of_all", fails)
    assert examined(federation, Evaluator(federation), loaded(federation), None) is None


def test_texts_are_not_corrupted() -> None:
    federation = federations.federation(**ASKED)
    assert unasked(federation) is None
    words = replace(
        federation.dataset, preprocess=replace(federation.dataset.preprocess, modality="text")
    )
    assert "only images" in str(unasked(replace(federation, dataset=words)))


def test_a_perfect_model_has_a_gap_that_can_be_read() -> None:
    told = _Arm(Exam(1.0, 100), 1.0000000000000002).gap(60)
    assert GapRecord.model_validate(told).gap == pytest.approx(0)
    assert _Arm(Exam(1.0, 3), 0.5).distance is None  # too few to tell
