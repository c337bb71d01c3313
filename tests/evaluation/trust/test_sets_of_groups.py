"""Sets of classes count what belongs together once: the images of a patient resemble each other,
and many images of few patients say little of new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.conformal import BINS, histogram, threshold
from fedsight.evaluation.trust.measure import Trusted, trusted
from fedsight.evaluation.trust.saved import keep, kept
from fedsight.evaluation.trust.units import shares, unit_histogram, unit_numbers
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

PATIENTS, EACH, ASKED, RUNS = 12, 30, 0.9, 300


def drawn(patients: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of the images of patients, of whom some are hard throughout; and whose they are."""
    made = torch.Generator().manual_seed(seed)
    hard = torch.rand(patients, generator=made, dtype=torch.float64).repeat_interleave(EACH)
    own = torch.rand(patients * EACH, generator=made, dtype=torch.float64)
    units = torch.arange(patients).repeat_interleave(EACH)
    return (0.97 * hard + 0.03 * own).clamp(0, 1), units


def covered(make: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean share of a new patient's images within the threshold."""
    found = []
    for seed in range(RUNS):
        limit = threshold(make(*drawn(PATIENTS, seed)), ASKED)
        assert limit is not None
        found.append(float((drawn(50, 10_000 + seed)[0] <= limit).double().mean()))
    return float(np.mean(found))


def test_new_patients_are_covered_where_patients_are_counted() -> None:
    assert covered(unit_histogram) >= ASKED
    assert covered(lambda values, units: histogram(values)) < ASKED - 0.02


def test_images_alone_are_counted_as_before() -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(unit_histogram(values, torch.arange(500)), histogram(values))


def test_the_loss_of_all_groups_is_rounded_up_to_whole_ones() -> None:
    values = torch.tensor([0.1, 0.9, 0.9, 0.2, 0.3], dtype=torch.float64)
    units = torch.tensor([7, 7, 7, 8, 9])
    found = unit_histogram(values, units)
    assert int(found.sum()) == 3
    beyond = found.flip(0).cumsum(0).flip(0)
    assert int(beyond[int(0.5 * BINS)]) == 1  # two thirds of a group
    assert int(beyond[int(0.25 * BINS)]) == 2  # and one
    assert shares(units).tolist() == pytest.approx([1 / 9] * 3 + [1 / 3] * 2)


def grouped(sites: int = 2) -> Federation:
    """A federation whose test images are of patients, three of each."""
    made: Federation = federations.federation(
        data={"train": 60, "test": 240},
        split={"sites": sites},
        trust={"coverage": 0.8, "false_alarm": 0.2},
    )
    test = made.dataset.test
    names = tuple(None if place >= 234 else f"p{place // 3}" for place in range(240))
    dataset = replace(made.dataset, test=replace(test, groups=names))
    return replace(made, dataset=dataset).viewed()


def measured(federation: Federation, folder: Path) -> Trusted:
    memory = MemoryStore(folder / "memory")
    vector = federation.initial[federation.layout.travelling].clone()
    return trusted(Final(federation, Speed(device="cpu"), vector, memory), True)


def test_what_is_told_is_of_groups_and_read_again(tmp_path: Path) -> None:
    federation = grouped()
    units = unit_numbers(federation.dataset.test, torch.tensor([0, 1, 2, 3, 239]))
    assert units.tolist() == [0, 0, 0, 3, 239]
    found = measured(federation, tmp_path)
    sets, ood = found.summary["sets"], found.summary["ood"]
    assert sets["grouped"] is True
    assert "expected" not in sets
    assert sets["images"] + sets["tested"] < 70, "78 groups and six images, a quarter fitted to"
    assert (ood["images"], ood["tested"]) == (sets["images"], sets["tested"])
    assert 0 <= sets["coverage"] <= 1
    store = RunStore(tmp_path)
    model = store.save_model({"weights": federation.initial})
    keep(store, found, model)
    saved = kept(store, len(federation.dataset.classes), model)
    assert saved is not None
    assert saved.sets.whole is not None
    assert int(saved.sets.whole.sum()) == sets["images"]
    assert float(saved.sets.limits("mixture", 0.8)[0]) == sets["threshold"]
    with pytest.raises(DataError, match="held-out groups are too few"):
        saved.sets.limits("mixture", 0.99)


def test_without_groups_nothing_is_said_of_them(tmp_path: Path) -> None:
    made = grouped()
    plain: Any = replace(made.dataset, test=replace(made.dataset.test, groups=None))
    found = measured(replace(made, dataset=plain).viewed(), tmp_path)
    assert "grouped" not in found.summary["sets"]
    assert "whole" not in found.facts["sets"]
    assert len(found.summary["sets"]["expected"]) == 2
