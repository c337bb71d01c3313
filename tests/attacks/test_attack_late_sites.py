"""Sites that join a run late make the rounds before them cheaper, if all count as drawn from many.

Under `central` with a cohort a client's cost depends on how many there are to draw from, and under
`matrix` on how often its turn comes. Two identities that connect after the fourth round, and never
train, lower the epsilon that is stated of these four.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from site_runs import Runs, owner
from site_services import FaultyLink, LocalLink, Places

from fedsight.coordinator.store import RunStore
from fedsight.deploy.membership import presence
from fedsight.deploy.server.job import JOB_FILE
from fedsight.deploy.server.joining import final_sites
from fedsight.privacy.accounting import COARSE, spent
from fedsight.privacy.base import Mechanism
from fedsight.privacy.event import gaussian

ROUNDS = {"rounds": 6, "cohort": 1, "weighting": "uniform", "evaluate_every": 6}
PRIVACY: dict[str, dict[str, Any]] = {
    "central": {"name": "central", "noise_multiplier": 1.0, "clip": 0.3},
    "matrix": {"name": "matrix", "noise_multiplier": 1.0, "clip": 0.3, "bands": 1},
}
LATE = ("south", "west")


@pytest.fixture
def runs(tmp_path: Path, site_images: Path, places: Places) -> Iterator[Runs]:
    yield Runs(tmp_path, site_images, places)
    for site in places.names:
        places.write_owner(site, owner(places, site))


def trained(runs: Runs, mechanism: str) -> tuple[RunStore, list[dict[str, Any]]]:
    """A run of one site, to which two come in its third round; the outcomes of its jobs."""
    store = runs.begin(f"late{mechanism}", rounds=ROUNDS, privacy=PRIVACY[mechanism], seed=3)
    seats = dict(runs.places.sit().seats)
    for site in LATE:
        del seats[site]

    def come(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind == "train" and header["round"] == 3:
            for site in LATE:
                presence.record(runs.federation.presences, site, "its first process", None)
        return text, body

    ended = [runs.run_job(store, FaultyLink(LocalLink(seats), "north", come))]
    for site in LATE:
        (runs.federation.presences / f"{site}.json").unlink()
    if ended[-1]["state"] != "finished":
        ended.append(runs.run_job(store))
    return store, ended


def truth(rounds: int) -> float:
    """What releases of the one site cost, which was in every round."""
    return spent([(gaussian(1.0), rounds)], 1e-5, grid=COARSE)


@pytest.mark.parametrize("mechanism", PRIVACY)
def test_where_late_sites_may_join_earlier_rounds_become_cheaper(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    monkeypatch.setattr(Mechanism, "fixes_population", lambda self, cohort: False)
    store, ended = trained(runs, mechanism)
    assert ended[0]["state"] == "handover"
    told = {line["round"]: line["epsilon"] for line in store.history()}
    assert told[3] == pytest.approx(truth(3), rel=1e-3)
    assert told[4] < 0.8 * told[3]


@pytest.mark.parametrize("mechanism", PRIVACY)
def test_ours_keeps_to_the_sites_of_its_first_round(runs: Runs, mechanism: str) -> None:
    store, ended = trained(runs, mechanism)
    assert ended == [{"number": 1, "state": "finished"}]  # nobody waits for the late sites
    for line in store.history():
        assert line["epsilon"] == pytest.approx(truth(line["round"]), rel=1e-3)
        assert set(line["sites"]) <= {"north"}


def test_ours_asks_no_late_site_and_says_why_and_needs_no_quorum_for_it(runs: Runs) -> None:
    """A job ends after the first round, and the next one has all three sites."""
    store = runs.begin("asked", rounds=ROUNDS, privacy=PRIVACY["central"], seed=3)
    seats = dict(runs.places.sit().seats)
    alone = LocalLink({"north": seats["north"]})
    assert final_sites(store, store.program()[0]) is None

    def fail(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        failed = kind == "train" and header["round"] == 2
        return (json.dumps({"error": "x", "cure": "y"}), b"") if failed else (text, body)

    assert runs.run_job(store, FaultyLink(alone, "north", fail))["state"] == "failed"
    assert final_sites(store, store.program()[0]) == {"north"}
    link = FaultyLink(runs.places.sit(), "", lambda *_: ("", b""))
    assert runs.run_job(store, link)["state"] == "finished"
    assert {site for site, _ in link.asked} == {"north"}
    assert store.read_json("run.json")["declared"].keys() == {"north"}
    why = {event["site"]: event["why"] for event in runs.federation.events()}
    assert why.keys() == set(LATE)
    assert "came after the first round" in why["west"]
    assert json.loads((store.folder / JOB_FILE).read_text())["state"] == "finished"


def test_a_site_that_leaves_still_counts_among_those_that_are_drawn_from(runs: Runs) -> None:
    store = runs.begin("leaves", rounds={**ROUNDS, "rounds": 1}, privacy=PRIVACY["central"])
    seats = dict(runs.places.sit().seats)

    def stop(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        return (json.dumps({"error": "x", "cure": "y"}), b"") if kind == "train" else (text, body)

    runs.run_job(store, FaultyLink(LocalLink(seats), "north", stop))  # fails if north is drawn
    del seats["west"]
    runs.run_job(store, LocalLink(seats))
    assert store.read_json("run.json")["declared"].keys() == {"north", "south", "west"}
    assert store.read_json("run.json")["privacy"]["sampling"] == "poisson, rate 0.3333"
