"""The end of a run: its sites get the model, those that were away later, and no fault spoils it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import authorities
import pytest
import torch
from safetensors.torch import load_file
from site_runs import Runs, owner
from site_services import SITES, FaultyLink, LocalLink, OtherCoordinator, Places

from fedsight.coordinator.store import RunStore
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.kits import AUTHORITY_KEY
from fedsight.deploy.membership.revocations import Revocations, accept
from fedsight.deploy.server import final_models, scheduler
from fedsight.deploy.server.scheduler import RunScheduler
from fedsight.deploy.site.delivery import process
from fedsight.deploy.site.delivery.received import Received
from fedsight.runs import lifecycle


@pytest.fixture
def runs(tmp_path: Path, site_images: Path, places: Places) -> Iterator[Runs]:
    yield Runs(tmp_path, site_images, places)
    for site in places.names:
        places.write_owner(site, owner(places, site))


def newest(places: Places, site: str) -> tuple[Received, str]:
    """What the site received last."""
    found = Received(places.root / site)
    return found, found.orders()[-1]


def test_every_site_gets_the_model_that_the_run_ended_with(runs: Runs) -> None:
    store = runs.begin("ended")
    assert runs.run_job(store)["state"] == "finished"
    assert store.read_json("received.json") == {"round": 2, "sites": list(SITES), "missing": {}}
    checkpoint = store.load_checkpoint()
    assert checkpoint is not None
    for site in SITES:
        received, key = newest(runs.places, site)
        assert torch.equal(received.vectors(key)["vector"], checkpoint.model)
        order = received.read(key)
        assert order is not None
        assert (order.round, order.accepted, order.counted) == (2, 2, 2)
        outcome = process.deliver(runs.places.root / site, key)
        # Too few images to choose by: it is the shared model, as the run's own folder has it.
        assert (outcome.state, outcome.facts["kind"]) == ("delivered", "shared")
        mine = load_file(runs.places.root / site / outcome.folder / "model.safetensors")
        theirs = load_file(store.folder / "model.safetensors")
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_a_site_that_has_measured_the_model_is_not_sent_it_again(runs: Runs) -> None:
    store = runs.begin("measured")
    link = FaultyLink(runs.places.sit(), "north", lambda kind, header, *answer: answer)
    assert runs.run_job(store, link)["state"] == "finished"
    kinds = [kind for site, kind in link.asked if site == "north"]
    last = kinds[kinds.index("deliver") :]
    assert set(last) <= {"deliver", "wait"}
    assert "measure" in kinds


def away(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[Any, Any]:
    """A site that is gone when the run ends."""
    if kind == "deliver":
        raise ConnectionError
    return text, body


def test_a_site_that_was_away_gets_it_when_the_run_is_resumed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.engines.remote import conversation

    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    store = runs.begin("away")
    assert runs.run_job(store, FaultyLink(runs.places.sit(), "south", away))["state"] == "finished"
    table = store.read_json("received.json")
    assert table["sites"] == ["north", "west"]
    assert "stopped answering" in table["missing"]["south"]
    lost = [event for event in runs.federation.events() if event["event"] == "undelivered"]
    assert [event["site"] for event in lost] == ["south"]
    before = (store.folder / "summary.json").read_bytes()
    rounds = store.history()
    # Only the late site is in the next job; it takes no part in any round.
    link = FaultyLink(LocalLink({"south": runs.places.seats["south"]}), "", away)
    assert runs.run_job(store, link)["state"] == "finished"
    assert {kind for _, kind in link.asked} <= {"propose", "deliver", "wait", "piece"}
    assert store.read_json("received.json") == {"round": 2, "sites": list(SITES), "missing": {}}
    assert (store.folder / "summary.json").read_bytes() == before
    assert store.history() == rounds
    received, key = newest(runs.places, "south")
    assert process.deliver(received.home, key).state == "delivered"


def test_a_site_gets_the_model_after_an_upgrade_and_tells_of_newer_revocations(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.engines.remote import conversation

    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    store = runs.begin("upgraded")
    assert runs.run_job(store, FaultyLink(runs.places.sit(), "south", away))["state"] == "finished"
    authorities.give(runs.federation.folder)
    certificate = authorities.show(runs.places.root / "south")
    (runs.federation.folder / "admitted").mkdir()
    (runs.federation.folder / "admitted" / "west.toml").touch()
    key = runs.federation.folder / "ca" / AUTHORITY_KEY
    newer = Revocations.signed(1, ["west"], key)
    accept(runs.places.root / "south", certificate, newer.table())
    link = OtherCoordinator({"south": runs.places.seats["south"]})
    try:
        outcome = runs.run_job(store, link)
        assert (outcome["state"], outcome["family"]) == ("failed", "RefusedError")
        assert list(runs.federation.revoked()) == ["west"]
        assert runs.run_job(store, link) == {"number": 1, "state": "finished"}
    finally:
        shutil.rmtree(runs.places.root / "south" / "kit")
        (runs.places.root / "south" / "revocations.json").unlink()
    assert store.read_json("received.json")["sites"] == list(SITES)


def test_a_coordinator_killed_after_the_summary_delivers_in_its_next_job(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = runs.begin("killed")
    with monkeypatch.context() as patch:

        def killed(*rest: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(final_models, "deliver", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.run_job(store)
    assert not (store.folder / "received.json").exists()
    assert runs.run_job(store)["state"] == "finished"
    assert store.read_json("received.json")["sites"] == list(SITES)


def test_a_site_that_refuses_the_model_does_not_harm_the_run(runs: Runs) -> None:
    def full(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[Any, Any]:
        if kind == "deliver":
            return json.dumps({"error": "cannot write the model: No space left on device"}), b""
        return text, body

    store = runs.begin("full")
    assert runs.run_job(store, FaultyLink(runs.places.sit(), "west", full))["state"] == "finished"
    assert "No space left" in store.read_json("received.json")["missing"]["west"]
    assert store.read_json("summary.json")["rounds"] == 2


def test_parts_that_stay_at_a_site_are_those_of_its_last_counted_round(runs: Runs) -> None:
    store = runs.begin("personal", algorithm={"name": "fedper"})
    assert runs.run_job(store)["state"] == "finished"
    program, speed = store.program()
    embedded = RunStore(store.folder.parent.parent / "embedded")
    lifecycle.start(lifecycle.Start(program, speed, embedded, "run"), [])
    from fedsight.inference import saved

    for site in SITES:
        received, key = newest(runs.places, site)
        outcome = process.deliver(received.home, key)
        assert outcome.facts["kind"] == "shared"
        mine = saved.load(received.home / outcome.folder).module.state_dict()
        theirs = saved.load(embedded.folder, site).module.state_dict()
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


class Jobs(RunScheduler):
    """A scheduler whose jobs run in this process."""

    runs: Runs
    jobs: list[list[str]]

    def _run_job(self, sites: Any) -> dict[str, Any]:
        self.jobs.append(list(sites))
        seats = {site: self.runs.places.seats[site] for site in sites}
        return self.runs.run_job(self._store, LocalLink(seats))


def test_resuming_a_finished_run_sends_the_model_to_who_is_there(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsight.engines.remote import conversation

    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    monkeypatch.setattr(scheduler, "LATE_SITES_TIMEOUT", 0.0)
    store = runs.begin("again")
    runs.run_job(store, FaultyLink(runs.places.sit(), "south", away))
    said: list[str] = []
    one = Jobs(runs.federation, store.program()[0], store, [], said.append)
    one.runs, one.jobs = runs, []
    (runs.federation.presences).mkdir(exist_ok=True)
    assert one.run()["rounds"] == 2  # nobody is connected
    assert one.jobs == []
    assert "site 'south' lacks the run's model" in said[-1]
    for site in SITES:
        presence.record(runs.federation.presences, site, "process", None)
    one.run()
    assert one.jobs == [list(SITES)]
    assert final_models.missing(store) == {}
