"""Sums of more sites than a run lists: all are in the total, each is checked and added as it comes,
and of each no more stays in memory than what is told of it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import attacked_site
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.evaluation.trust import remote
from fedsight.evaluation.trust.calibration import UNIT
from fedsight.evaluation.trust.conformal import BINS
from fedsight.evaluation.trust.fit import FitFile
from fedsight.evaluation.trust.reliability import FINE
from fedsight.evaluation.trust.remote import MADE_UP, trusted_remote
from fedsight.evaluation.trust.saved import keep, kept
from fedsight.evaluation.trust.sums import EVERY, CountSums, FitSums, flat
from fedsight.program.federation import Federation, federate
from fedsight.program.views import LISTED, View

SITES = LISTED + 1
COVER, TESTED = 12, 20  # images of a site: of one class each
LIAR = 7  # the number of a site that makes its sums up


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    many, few = (attacked_site.noise_images(SITES * 2, seed) for seed in (0, 5))
    return attacked_site.draw(tmp_path_factory.mktemp("images"), many, few)


def federation_of(images: Path, **trust: Any) -> Federation:
    """A federation in which each site measures."""
    of = attacked_site.program(images, split={"name": "iid", "sites": SITES}, trust=trust)
    views = tuple(View(site, np.arange(COVER + TESTED)) for site in range(SITES))
    return replace(federate(of), views=views)


def histogram(rows: int, row: int, place: int, images: int) -> Tensor:
    found = torch.zeros(rows, BINS, dtype=torch.int64)
    found[row, place] = images
    return found


def reliable(images: int) -> Tensor:
    found = torch.zeros(2, FINE, 3, dtype=torch.int64)
    found[:, 3 * FINE // 4] = torch.tensor([images, images // 2, images * UNIT // 2])
    return found


def counts(site: int) -> CountSums:
    """Those of a site: its scores depend on its number."""
    held = histogram(2, 0, 50, TESTED) + histogram(2, 1, 60 + site, TESTED)
    ends = (histogram(1, 0, 9, one)[0] for one in (COVER, TESTED))
    of_class = (histogram(2, 0, 100 + site, COVER), histogram(2, 1, 60 + site, TESTED))
    squares = torch.tensor([5, 5])
    images = torch.tensor([COVER, TESTED])
    return CountSums(images, *of_class, held, *ends, reliable(COVER), reliable(TESTED), squares)


def answers(seen: Callable[[], None] = lambda: None) -> remote.Ask:
    """All sites answer, one after the other; `seen` is called behind each."""

    def ask(question: remote.SumQuestion, take: remote.Take) -> Mapping[str, str]:
        for site in range(SITES):
            losses = FitSums(torch.tensor([1]), torch.full((EVERY,), UNIT))
            numbers = flat(losses if question.temperature is None else counts(site))
            assert len(numbers) == question.form.size
            images = COVER + TESTED
            take(site, images, numbers + (1 << 40) if site == LIAR else numbers)
            del numbers
            seen()
        return {}

    return ask


@pytest.mark.parametrize("guarantee", ["mixture", "site", "class"])
def test_a_run_of_more_sites_than_it_lists_is_read_again(
    images: Path, tmp_path: Path, guarantee: str
) -> None:
    federation = federation_of(images, guarantee=guarantee)
    store = RunStore(tmp_path)
    found = trusted_remote(federation, answers(), FitFile(store, (federation.initial, 1)), {})
    model = store.save_model({"weights": federation.initial})
    keep(store, found, model)
    saved = kept(store, 2, model)
    assert saved is not None
    names = [federation.partition.name(site) for site in range(SITES)]
    wanted = {name for site, name in enumerate(names[:LISTED]) if site != LIAR}
    assert set(saved.sets.sites) == wanted
    assert set(found.summary["calibration"]["by_site"]) == wanted
    assert set(found.summary["sets"].get("by_site", {})) == wanted
    assert int(saved.sets.classes.sum()) == COVER * (SITES - 1), "all honest sites are in the total"
    assert found.summary["sets"]["without"] == {names[LIAR]: MADE_UP}
    for name in wanted:  # as of the sums themselves
        at, one = found.summary["sets"]["by_site"][name], counts(names.index(name))
        assert torch.equal(saved.sets.sites[name], one.cover.sum(0))
        assert at["images"] == COVER
        limits = saved.sets.limits(guarantee, federation.program.trust.coverage, name)
        stops = (limits.clamp(max=1) * BINS).round().long().tolist()
        for key, sums in (("coverage", one.tested), ("size", one.held)):
            inside = sum(int(row[:stop].sum()) for row, stop in zip(sums, stops, strict=True))
            assert at[key] == inside / TESTED


@pytest.mark.parametrize(("guarantee", "rows"), [("mixture", 1), ("class", 2)])
def test_of_a_site_no_more_stays_in_memory_than_is_told_of_it(
    images: Path, tmp_path: Path, guarantee: str, rows: int
) -> None:
    """Of an answer to the first question nothing, of one to the second no histograms by class,
    where they are not needed: these take 10 MB for a hundred classes."""
    held, came = [], itertools.count()
    looked = {number + question for question in (0, SITES) for number in (10, 110)}

    def seen() -> None:
        if next(came) in looked:
            held.append(living())

    federation = federation_of(images, guarantee=guarantee)
    file = FitFile(RunStore(tmp_path), (federation.initial, 1))
    trusted_remote(federation, answers(seen), file, {})
    first, second = held[1] - held[0], held[3] - held[2]
    assert first == 0
    assert second == 100 * BINS * (8 + 4 * rows + 4 * rows)


def living() -> int:
    """Bytes of all tensors of whole numbers in this process."""
    storages = [
        one.untyped_storage()
        for one in gc.get_objects()
        if type(one) is Tensor and one.dtype in (torch.int64, torch.int32)
    ]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())
