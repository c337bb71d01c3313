"""The examples in CONTRIBUTING.md work as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from docpages import blocks, text

from fedsight.algorithms.base import algorithms
from fedsight.core.registry import Registry
from fedsight.data.augment.base import augmentations
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.models.base import models
from fedsight.tasks.base import tasks


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test registers is forgotten afterwards."""
    registries: tuple[Registry[Any], ...] = (sources, splits, models, tasks, algorithms)
    for registry in (*registries, augmentations):
        registry.names()
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
        monkeypatch.setattr(registry, "_facts", dict(registry._facts))


@pytest.mark.usefixtures("own_registries")
def test_the_examples_for_contributors_work(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "contributed"}
    algorithm = blocks("CONTRIBUTING.md", "python")[0]
    assert len(algorithm.splitlines()) < 60
    for code in blocks("CONTRIBUTING.md", "python"):
        exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    for part, count in (("train", 30), ("test", 10)):
        np.save(tmp_path / f"{part}_images.npy", np.zeros((count, 8, 8), np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", np.arange(count) % 3)
    opened = names["Npy"](path=tmp_path).open()
    assert opened.classes == ("0", "1", "2")
    partition = names["Sorted"](sites=3).divide(opened.train, 3, 0)
    assert [partition.size(site) for site in range(3)] == [10, 10, 10]
    plain = federations.learn(federations.federation(model={"name": "linear"}))
    for largest in (1.0, 2.0):
        train = {"augment": [{"name": "gamma", "largest": largest}]}
        changed = federations.learn(federations.federation(model={"name": "linear"}, train=train))
        assert torch.equal(changed.vector, plain.vector) == (largest == 1)
    focal = federations.federation(model={"name": "linear"}, task={"name": "focal", "gamma": 0.0})
    assert (federations.learn(focal).vector - plain.vector).abs().max() < 1e-6


def test_the_limits_are_those_that_are_enforced() -> None:
    import house

    page = " ".join(text("CONTRIBUTING.md").split())
    assert f"at most {house.LONGEST_FILE} lines per file" in page
    assert f"{house.LONGEST_FUNCTION} lines per function" in page
    assert f"about {house.MEDIAN_FILE} lines" in page
