"""Sets of classes count what belongs together once: the images of a patient resemble each other,
and many images of few patients say little of new ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.core.draws import draws
from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Part
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.conformal import histogram, threshold
from fedsight.evaluation.trust.measure import Trusted, trusted
from fedsight.evaluation.trust.saved import keep, kept
from fedsight.evaluation.trust.units import fewest, group_count, one_of_each
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.site_data import SiteData

PATIENTS, EACH, ASKED, RUNS = 12, 30, 0.9, 300


def drawn(patients: int, seed: int) -> tuple[Tensor, SiteData]:
    """Scores of the images of patients, of whom some are hard throughout; and whose they are."""
    made = torch.Generator().manual_seed(seed)
    hard = torch.rand(patients, generator=made, dtype=torch.float64).repeat_interleave(EACH)
    own = torch.rand(patients * EACH, generator=made, dtype=torch.float64)
    names = [f"p{place // EACH}" for place in range(patients * EACH)]
    return (0.97 * hard + 0.03 * own).clamp(0, 1), images_of(names)


def images_of(names: Sequence[str | None], origins: Tensor | None = None) -> SiteData:
    """Images of these groups, in this order."""
    pixels = ArrayImages(torch.zeros(len(names), 1, 1, 1, dtype=torch.uint8), "drawn")
    part = Part(pixels, np.zeros(len(names), np.int64), groups=tuple(names))
    places = torch.arange(len(names))
    return SiteData(part, places, torch.zeros_like(places) if origins is None else origins, keep_as)


def keep_as(pixels: Tensor, origin: int, indices: Tensor) -> Tensor:
    return pixels


def fresh(seed: int) -> Callable[[int], Callable[[int], int]]:
    """Draws for each site."""
    return lambda site: draws(seed, "test", site).below


def covered(counts: Callable[[Tensor, SiteData, int], Tensor]) -> float:
    """The mean share of a new patient's images within the threshold."""
    found = []
    for seed in range(RUNS):
        limit = threshold(counts(*drawn(PATIENTS, seed), seed), ASKED)
        assert limit is not None
        found.append(float((drawn(50, 10_000 + seed)[0] <= limit).double().mean()))
    return float(np.mean(found))


def of_patients(scores: Tensor, data: SiteData, seed: int) -> Tensor:
    return histogram(scores[one_of_each(data, fresh(seed)).indices])


def test_new_patients_are_covered_where_patients_are_counted() -> None:
    """Of twelve that are drawn, the largest score covers 12 in 13 new ones on average."""
    assert ASKED <= covered(of_patients) < 12 / 13 + 0.02
    assert covered(lambda scores, data, seed: histogram(scores)) < ASKED - 0.02


names = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12)


@given(names, st.integers(0, 9), st.randoms())
def test_of_each_group_there_is_one_image_whatever_their_order(
    groups: list[str | None], seed: int, order: random.Random
) -> None:
    data = images_of(groups)
    found = one_of_each(data, fresh(seed)).indices.tolist()
    units = [data.part.unit(place) for place in found]
    assert len(units) == len(set(units)) == group_count(data.part)
    assert found == sorted(found)
    mixed = [*range(len(groups))]
    order.shuffle(mixed)
    moved = replace(data, indices=data.indices[mixed])
    assert sorted(one_of_each(moved, fresh(seed)).indices.tolist()) == found


@given(names, names, st.integers(0, 9))
def test_which_image_is_drawn_does_not_depend_on_other_sites(
    mine: list[str | None], others: list[str | None], seed: int
) -> None:
    """So a site draws by itself what a simulation of all draws for it."""
    theirs = [None if one is None else f"their {one}" for one in others]
    origins = torch.tensor([0] * len(mine) + [1] * len(theirs))
    both = one_of_each(images_of([*mine, *theirs], origins), fresh(seed))
    alone = one_of_each(images_of(mine), fresh(seed))
    assert both.indices[both.origins == 0].tolist() == alone.indices.tolist()


@given(names)
def test_what_is_left_over_is_of_enough_groups_or_of_none(groups: list[str | None]) -> None:
    data = images_of(groups)
    units = len({data.part.unit(place) for place in range(len(groups))})
    assert fewest(data, data, data, data.part.unit) <= units
    once = one_of_each(data, fresh(0))
    several = {data.part.unit(place) for place in range(len(groups))
               if place not in once.indices.tolist()}  # fmt: skip
    wanted = min(units, 2 * len(several)) if several else units
    assert fewest(data, data, data, data.part.unit) == wanted


def test_a_part_without_groups_is_left_as_it_is() -> None:
    data = images_of(["a", "a"])
    plain = replace(data, part=replace(data.part, groups=None))
    assert one_of_each(plain, fresh(0)) is plain
    assert group_count(plain.part) is None
    assert group_count(data.part) == 1


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
    found = measured(federation, tmp_path)
    sets, ood = found.summary["sets"], found.summary["ood"]
    assert sets["grouped"] is True
    assert len(sets["expected"]) == 2
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
