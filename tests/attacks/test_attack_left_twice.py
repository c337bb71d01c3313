"""A site leaves the sums of a closed form twice, or joins them twice, and nobody sees it.

Sums of many images do not tell who is in them. So the head was one of sums in which a site counted
minus once, or twice; only where something became negative was that refused.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from site_runs import Runs, owner
from site_services import SITES, LocalLink, Places
from torch import Tensor

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.deploy.declaration import Declaration
from fedsight.deploy.earlier_sites import EarlierSites, earlier_sites
from fedsight.deploy.server import job

NCM: dict[str, Any] = {"name": "ncm", "low": -100.0, "high": 100.0}
FEDERATION = "/wards"
WEST, OTHERS = ("west",), ("north", "south")


@pytest.fixture
def runs(tmp_path: Path, site_images: Path, places: Places) -> Iterator[Runs]:
    yield Runs(tmp_path, site_images, places)
    for site in places.names:
        places.write_owner(site, owner(places, site))


def summed(
    runs: Runs,
    name: str,
    sites: tuple[str, ...],
    earlier: RunStore | None = None,
    change: str = "leave",
) -> tuple[RunStore, dict[str, Any]]:
    """A run over the sites, and how it ended."""
    algorithm = dict(NCM)
    if earlier is not None:
        path = earlier.folder / "checkpoint.safetensors"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        algorithm |= {"earlier": str(path), "earlier_sha256": sha256, "change": change}
    store = runs.begin(name, algorithm=algorithm, rounds={"rounds": 1, "quorum": 1})
    store.write_json("run.json", {**store.read_json("run.json"), "federation": FEDERATION})
    seats = runs.places.sit().seats
    return store, runs.run_job(store, LocalLink({site: seats[site] for site in sites}))


def sums(store: RunStore) -> Tensor:
    checkpoint = store.load_checkpoint()
    assert checkpoint is not None
    return torch.cat([value.reshape(-1) for value in checkpoint.state.values()])


def test_a_site_that_leaves_twice_counts_minus_once_where_nobody_knows_who_is_in_the_sums(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "earlier_sites", lambda *given: None)
    first, _ = summed(runs, "first", tuple(SITES))
    once, _ = summed(runs, "once", WEST, first)
    twice, ended = summed(runs, "twice", WEST, once)
    assert ended["state"] == "finished"
    assert (sums(twice) == sums(first) - 2 * (sums(first) - sums(once))).all()
    assert (sums(twice) != sums(once)).any()


def test_ours_lets_it_leave_once_and_join_once(runs: Runs) -> None:
    first, _ = summed(runs, "first", tuple(SITES))
    once, ended = summed(runs, "once", WEST, first)
    assert ended["state"] == "finished"
    _, ended = summed(runs, "twice", WEST, once)
    assert ended["state"] == "failed"
    assert "site 'west' is not in the sums of algorithm.earlier" in ended["cause"]
    _, ended = summed(runs, "double", (*WEST, "north"), once, "join")
    assert ended["state"] == "finished", "the other one goes on"
    (event,) = [one for one in runs.federation.events() if one["run"] == "double"]
    assert "site 'north' is in the sums of algorithm.earlier already" in event["why"]
    again, ended = summed(runs, "again", WEST, once, "join")
    assert ended["state"] == "finished"
    assert (sums(again) == sums(first)).all()
    assert sorted(again.read_json("run.json")["earlier"]["sites"]) == sorted(OTHERS)
    _, ended = summed(runs, "thrice", WEST, again, "join")
    assert "site 'west' is in the sums" in ended["cause"]


def test_a_site_that_was_in_the_run_but_did_not_count_is_not_in_its_sums(runs: Runs) -> None:
    store, _ = summed(runs, "first", tuple(SITES))
    (line,) = store.history()
    (store.folder / "history.jsonl").write_text("")
    with pytest.raises(StoreError, match=r"has no history\.jsonl"):
        _ = before(runs, store)
    store.append_history({**line, "sites": list(OTHERS)})
    assert sorted(before(runs, store).sites) == sorted(OTHERS)


def before(runs: Runs, store: RunStore) -> EarlierSites:
    """Who is in the sums that a run which names `store` changes."""
    path = store.folder / "checkpoint.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    algorithm = {**NCM, "earlier": str(path), "earlier_sha256": sha256}
    next = runs.begin("next", algorithm=algorithm, rounds={"rounds": 1})
    found = earlier_sites(next, next.program()[0])
    assert found is not None
    return found


def test_names_say_nothing_of_a_run_that_was_made_elsewhere(runs: Runs, tmp_path: Path) -> None:
    first, _ = summed(runs, "first", tuple(SITES))
    facts = first.read_json("run.json")
    elsewhere = RunStore(Path(shutil.copytree(first.folder, tmp_path / "other" / "first")))
    for federation, state in (("/other", "finished"), (FEDERATION, "failed")):
        elsewhere.write_json("run.json", {**facts, "federation": federation})
        _, ended = summed(runs, f"next{state}", WEST, elsewhere, "join")
        assert ended["state"] == state, "of another federation, it is the operator's to see to"
    assert "site 'west' is in the sums of algorithm.earlier already" in ended["cause"]


def test_a_site_with_other_images_does_not_leave(runs: Runs) -> None:
    first, _ = summed(runs, "first", tuple(SITES))
    found = before(runs, first)
    found = EarlierSites("leave", found.sites)
    west: Declaration = found.sites["west"]
    assert found.misplaced({"west": west}) == {}
    labels = (west.labels[0] - 1, west.labels[1] + 1, *west.labels[2:])
    (error,) = found.misplaced({"west": replace(west, labels=labels)}).values()
    assert "declares other images than those with which it joined" in error.cause
    untold = replace(west, labels=(), total=west.train)
    assert found.misplaced({"west": untold}) == {}
    assert list(found.misplaced({"west": replace(untold, total=8)})) == ["west"]
