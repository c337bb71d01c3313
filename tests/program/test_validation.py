"""Rounds are measured on the validation part, the final model on the test part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import ConfigError
from fedsight.data.base import ArrayImages, Dataset, Part
from fedsight.data.partition import Groups
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.program.config import check_elsewhere
from fedsight.program.federation import federate
from fedsight.program.program import Speed
from fedsight.program.validation import set_aside
from fedsight.runs.lifecycle import Start, start


class Parted(federations.Tiny):
    """The first test images are a validation part."""

    def open(self) -> Dataset:
        """Cut the test part in two."""
        whole = super().open()
        pixels, labels = whole.test.images.pixels, whole.test.labels
        parts = [
            Part(ArrayImages(pixels[chosen], "part"), labels[chosen])
            for chosen in (slice(0, 20), slice(20, None))
        ]
        return replace(whole, validation=parts[0], test=parts[1])


def finished(folder: Path, program: Any, workers: int = 1) -> RunStore:
    store = RunStore(folder)
    start(Start(program, Speed(workers=workers, device="cpu"), store, "run"), [])
    return store


@pytest.mark.parametrize("algorithm", ["fedavg", "fedrep"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_given_validation_part_is_what_the_rounds_look_at(
    tmp_path: Path, algorithm: str, workers: int
) -> None:
    program = replace(federations.program(algorithm={"name": algorithm}), data=Parted())
    store = finished(tmp_path / "run", program, workers)
    federation = federate(program)
    assert federation.validating is not None
    assert len(federation.validating.dataset.test) == 20
    history, summary = store.history(), store.read_json("summary.json")
    assert [line["measured_on"] for line in history] == ["validation part"] * 2
    assert store.read_json("run.json")["data"]["validation"] == 20
    if algorithm == "fedavg":
        engine = InProcessEngine(federation)
        vector = store.load_checkpoint().vector
        on_test, aside = engine.measure(vector, 2), engine.measure(vector, 2, validation=True)
        engine.close()
        assert summary["score"] == Evaluator(federation).figures(on_test).overall["score"]
        checked = Evaluator(federation.validating).figures(aside)
        assert history[-1]["score"] == checked.overall["score"]
        assert (on_test[0]["confusion"].count, aside[0]["confusion"].count) == (40, 20)


def test_the_test_part_changes_no_figure_of_a_round(tmp_path: Path) -> None:
    """Nothing that is chosen by the history has looked at the test part."""
    stores = [
        finished(tmp_path / str(test), replace(federations.program(), data=Parted(test=test)))
        for test in (60, 45)
    ]
    lines = [[line["score"] for line in store.history()] for store in stores]
    assert lines[0] == lines[1]


def test_a_share_of_each_sites_training_images_is_set_aside() -> None:
    split = {"name": "quantity", "sites": 4, "min_samples": 5}
    whole = federations.federation(split=split)
    held = federations.federation(split=split, rounds={"validation": 0.2})
    assert held.aside is not None
    assert held.validating is not None
    for site in range(4):
        before, kept = whole.partition.indices(site), held.partition.indices(site)
        taken = held.aside[site]
        assert len(taken) == int(len(before) * 0.2)
        assert sorted([*kept, *taken]) == sorted(before)
        assert held.partition.name(site) == whole.partition.name(site)
    again = federations.federation(split=split, rounds={"validation": 0.2})
    assert all(np.array_equal(a, b) for a, b in zip(held.aside, again.aside, strict=True))
    assert Evaluator(held.validating).site_test == "own images"
    assert Evaluator(held).site_test == "label mix"
    seen = [held.validating.tested(view).indices for view in held.validating.views]
    assert torch.cat(seen).tolist() == np.concatenate(held.aside).tolist()


def test_history_is_measured_on_what_was_set_aside(tmp_path: Path) -> None:
    program = federations.program(rounds={"validation": 0.2})
    store = finished(tmp_path / "run", program, workers=2)
    assert store.history()[-1]["measured_on"] == "validation part"
    facts = store.read_json("run.json")
    assert facts["data"]["validation"] == 24
    assert sum(site["samples"] for site in facts["sites"]) == 96
    assert sum(map(sum, store.read_json("evaluation.json")["confusion"])) == 60


def test_without_a_validation_part_history_says_that_it_looks_at_the_test_part(
    tmp_path: Path,
) -> None:
    store = finished(tmp_path / "run", federations.program(rounds={"evaluate_every": 2}))
    assert [line["measured_on"] for line in store.history()] == [None, "test part"]
    assert store.history()[-1]["score"] == store.read_json("summary.json")["score"]


def test_where_nothing_can_be_set_aside_it_is_said() -> None:
    with pytest.raises(ConfigError, match=r"may hold the same images") as caught:
        federations.federation(
            split={"name": "virtual", "sites": 5, "samples": 9}, rounds={"validation": 0.1}
        )
    assert caught.value.problems[0].where == "rounds.validation"
    with pytest.raises(ConfigError, match=r"their test images only"):
        check_elsewhere(federations.program(rounds={"validation": 0.1}), Speed(device="cpu"))


def test_whole_groups_are_set_aside_and_none_is_also_trained_on() -> None:
    """Twelve patients of ten images at two sites, one of them at both."""
    groups = [f"patient {number // 10}" for number in range(120)]
    partition = Groups([np.arange(55), np.arange(55, 120)])
    kept, aside = set_aside(partition, 0.2, 3, groups)
    held = {groups[place] for one in aside for place in one.tolist()}
    trained = {groups[place] for site in range(2) for place in kept.indices(site).tolist()}
    assert [len(one) for one in aside] == [10, 10]
    assert not held & trained
    assert held | trained == set(groups)
    for seed in range(20):
        _, drawn = set_aside(partition, 0.9, seed, groups)
        assert "patient 5" not in {groups[place] for one in drawn for place in one.tolist()}


def test_a_federation_sets_whole_groups_aside() -> None:
    program = federations.program(rounds={"validation": 0.3})
    opened = program.data.open()
    groups = [f"patient {number % 30}" for number in range(120)]
    held = federate(program, replace(opened, train=replace(opened.train, groups=groups)))
    aside = {groups[place] for own in held.aside or () for place in own.tolist()}
    trained = {groups[p] for site in range(3) for p in held.partition.indices(site).tolist()}
    assert len(aside) == 9
    assert not aside & trained


def test_images_without_groups_are_drawn_as_where_no_image_has_one() -> None:
    partition = Groups([np.arange(0, 90, 2), np.arange(1, 40, 2)])
    plain = set_aside(partition, 0.3, 5)
    alone = set_aside(partition, 0.3, 5, [None] * 90)
    for one, other in zip(plain[1], alone[1], strict=True):
        assert np.array_equal(one, other)
    assert all(np.array_equal(plain[0].indices(at), alone[0].indices(at)) for at in range(2))
    _, two = set_aside(Groups([np.arange(20)]), 0.1, 0, ["a"] * 5 + ["b"] * 15)
    assert len(two[0]) in (5, 15)  # at least one group, and not both
    _, one_group = set_aside(Groups([np.arange(20)]), 0.5, 0, ["a"] * 20)
    assert not len(one_group[0])
