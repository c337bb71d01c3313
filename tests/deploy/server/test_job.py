"""A job continues a run from its checkpoint, and records how it ended, whatever happens."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import site_services
from site_runs import Runs, owner
from site_services import SITES, FaultyLink, OtherCoordinator, Places

from fedsight.coordinator import store as run_store
from fedsight.coordinator.asked import ask
from fedsight.coordinator.store import RunStore
from fedsight.core import locks
from fedsight.core.errors import DeployError, SiteError
from fedsight.core.files import append_line
from fedsight.core.package import installed
from fedsight.deploy.membership import presence
from fedsight.deploy.server.job import JOB_FILE, run_job
from fedsight.deploy.server.joining import Trained, is_trained, program_for_sites, propose
from fedsight.deploy.site.state import drain
from fedsight.engines.remote import conversation
from fedsight.engines.remote.engine import RemoteEngine
from fedsight.governance.ledger import Ledger
from fedsight.program.config import parse
from fedsight.report.read import read
from fedsight.report.view import figure_notes
from fedsight.runs import lifecycle
from fedsight.runs.listing import look


@pytest.fixture
def runs(tmp_path: Path, site_images: Path, places: Places) -> Iterator[Runs]:
    yield Runs(tmp_path, site_images, places)
    for site in places.names:
        places.write_owner(site, owner(places, site))


def test_a_job_finishes_a_run_with_the_embedded_engines_model(runs: Runs, tmp_path: Path) -> None:
    store = runs.begin("whole")
    assert runs.run_job(store) == {"number": 1, "state": "finished"}
    program, speed = store.program()
    embedded = RunStore(tmp_path / "embedded")
    lifecycle.start(lifecycle.Start(program, speed, embedded, "run"), [])
    ours, theirs = (one / "model.safetensors" for one in (store.folder, embedded.folder))
    assert ours.read_bytes() == theirs.read_bytes()
    assert store.read_json("summary.json")["rounds"] == 2


def test_a_job_pauses_after_a_round_and_the_next_one_ends_with_the_same_bits(
    runs: Runs, tmp_path: Path
) -> None:
    whole, store = runs.begin("whole"), runs.begin("paused")
    ask(store.folder, "pause")
    outcome = runs.run_job(store)
    assert (outcome["family"], outcome["again"]) == ("Paused", False)
    assert "after round 1" in outcome["cause"]
    assert look(store.folder).state == "paused"
    assert runs.run_job(store)["state"] == runs.run_job(whole)["state"] == "finished"
    models = [(one.folder / "model.safetensors").read_bytes() for one in (whole, store)]
    assert models[0] == models[1]
    assert store.read_json("evaluation.json")["samples"] == []  # images stay at the sites


def test_a_refusing_site_stops_the_run_unless_there_is_a_quorum(runs: Runs) -> None:
    runs.places.write_owner("west", owner(runs.places, "west", tasks=["faces"]))
    ended = runs.run_job(runs.begin("all"))
    assert (ended["state"], ended["again"], ended["family"]) == ("failed", False, "RefusedError")
    assert "west" in ended["cause"]
    assert "permits the tasks faces" in ended["cause"]
    store = runs.begin("most", rounds={"quorum": 2})
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north", "south"]] * 2
    absent = [event for event in runs.federation.events() if event["event"] == "absent"]
    assert {event["site"] for event in absent} == {"west"}


def test_a_revoked_site_is_not_asked(runs: Runs) -> None:
    (runs.federation.folder / "revoked.json").write_text('{"south": "left"}')
    store = runs.begin("revoked", rounds={"quorum": 2})
    assert runs.run_job(store)["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north", "west"]] * 2


def test_replies_of_a_revoked_site_do_not_count(runs: Runs) -> None:
    revoked = runs.federation.folder / "revoked.json"

    def leave(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind == "train" and header["round"] == 2:
            revoked.write_text('{"north": "left"}')
        return text, body

    store = runs.begin("leaving", rounds={"rounds": 3, "quorum": 2})
    ended = runs.run_job(store, FaultyLink(runs.places.sit(), "north", leave))
    assert ended["state"] == "finished"
    lines = store.history()
    assert [line["sites"] for line in lines] == [list(SITES), ["south", "west"], ["south", "west"]]
    assert "north" in lines[1]["rejected"]


def test_a_run_continues_without_a_site_whose_images_disagree(runs: Runs) -> None:
    def other(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind != "propose":
            return text, body
        answer = json.loads(text)
        answer["declared"]["classes"] = [name.upper() for name in answer["declared"]["classes"]]
        return json.dumps(answer), body

    for name in ("north", "west"):  # the first name has no precedence
        store = runs.begin(f"fit{name}", rounds={"quorum": 2})
        assert (
            runs.run_job(store, FaultyLink(runs.places.sit(), name, other))["state"] == "finished"
        )
        others = [site for site in SITES if site != name]
        assert [line["sites"] for line in store.history()] == [others] * 2
        (why,) = {e["why"] for e in runs.federation.events() if e["run"] == store.folder.name}
        assert f"site '{name}' has the classes" in why
    ended = runs.run_job(runs.begin("fitall"), FaultyLink(runs.places.sit(), "west", other))
    assert (ended["state"], ended["again"]) == ("failed", False)
    assert "site 'west' has the classes" in ended["cause"]


def test_a_site_that_declares_one_image_ends_no_run_with_a_quorum(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm cannot train on one image, and a malicious site may say that it has no more."""

    def lone(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        answer = json.loads(text)
        if "declared" not in answer:
            return text, body
        answer["declared"]["labels"] = [1, *[0] * (len(answer["declared"]["labels"]) - 1)]
        return json.dumps(answer), body

    model = {"name": "torchvision", "architecture": "shufflenet_v2_x0_5", "norm": "batch"}
    monkeypatch.setitem(site_services.SECTIONS, "model", model)
    sections = {"rounds": {"rounds": 1, "quorum": 2}}
    store = runs.begin("lone", **sections)
    assert runs.run_job(store, FaultyLink(runs.places.sit(), "west", lone))["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north", "south"]]
    (event,) = runs.federation.events()
    assert "site 'west' has a single training image" in event["why"]
    monkeypatch.setattr("fedsight.deploy.server.joining.lone_sites", lambda program, found: {})
    ended = runs.run_job(runs.begin("was", **sections), FaultyLink(runs.places.sit(), "west", lone))
    assert (ended["state"], ended["again"]) == ("failed", False)


def test_a_site_whose_numbers_suit_no_program_ends_no_run_with_a_quorum(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size of one pixel, for which there is no network, or so few images that each step shows
    one."""

    def few(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        answer = json.loads(text)
        if "declared" in answer:
            answer["declared"]["labels"] = [1, *[0] * (len(answer["declared"]["labels"]) - 1)]
        return json.dumps(answer), body

    def tiny(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        answer = json.loads(few(kind, header, text, body)[0])
        if "declared" in answer:
            answer["declared"]["preprocess"] |= {"height": 1, "width": 1}
        return json.dumps(answer), body

    cnn = {"name": "small_cnn", "width": 4, "blocks": 2}
    dp = {"name": "example", "epsilon": 4.0, "noise_multiplier": 1.0}
    for alter, why, sections in (
        (tiny, "prepares images as", {"model": cnn}),
        (few, "within privacy.epsilon", {"privacy": dp, "train": {"batch": 1}}),
    ):
        store = runs.begin(alter.__name__, rounds={"rounds": 1, "quorum": 2}, **sections)
        link = FaultyLink(runs.places.sit(), "west", alter)
        assert runs.run_job(store, link)["state"] == "finished"
        assert [line["sites"] for line in store.history()] == [["north", "south"]]
        assert why in runs.federation.events()[-1]["why"]


def test_sites_that_declare_more_images_than_fit_end_the_part_of_the_largest_only(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boast(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        answer = json.loads(text)
        if "declared" in answer:
            answer["declared"]["labels"] = [5_000, 0, 0]
        return json.dumps(answer), body

    monkeypatch.setattr("fedsight.deploy.declaration.MAX_TOTAL_IMAGES", 1_000)
    store = runs.begin("boast", rounds={"rounds": 1, "quorum": 2})
    assert runs.run_job(store, FaultyLink(runs.places.sit(), "west", boast))["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north", "south"]]
    (event,) = runs.federation.events()
    assert "site 'west' declares the most, 5,003" in event["why"]


def test_the_outcome_is_written_before_the_lock_is_released(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = runs.begin("order")
    write, seen = RunStore.write_json, []

    def watched(self: RunStore, name: str, value: Any) -> None:
        if name == JOB_FILE:
            seen.append((value["state"], locks.held(self.folder / ".lock")))
        write(self, name, value)

    monkeypatch.setattr(RunStore, "write_json", watched)
    runs.run_job(store)
    assert seen == [("running", True), ("finished", True)]


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_complete(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = runs.begin("full", rounds={"rounds": 3})

    def append(path: Path, line: dict[str, Any]) -> None:
        if line["round"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        append_line(path, line)

    with monkeypatch.context() as full:
        full.setattr(run_store, "append_line", append)
        ended = runs.run_job(store)
    assert (ended["state"], ended["again"], ended["family"]) == ("failed", False, "StoreError")
    assert "No space left" in ended["cause"]
    checkpoint = store.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.round == 1
    assert runs.run_job(store)["state"] == "finished"
    assert [line["round"] for line in store.history()] == [1, 2, 3]


def test_a_site_that_connects_joins_with_the_next_job(runs: Runs) -> None:
    store = runs.begin("later", rounds={"rounds": 3, "quorum": 2})
    seats = dict(runs.places.sit().seats)
    west = seats.pop("west")

    def come(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        presence.record(runs.federation.presences, "west", "its first process", None)
        return text, body

    ended = runs.run_job(store, FaultyLink(site_services.LocalLink(seats), "north", come))
    assert ended == {"number": 1, "state": "handover", "why": "site 'west' is ready to join"}
    assert [line["round"] for line in store.history()] == [1]
    (runs.federation.presences / "west.json").unlink()
    assert west is runs.places.seats["west"]
    assert runs.run_job(store)["state"] == "finished"
    assert [len(line["sites"]) for line in store.history()] == [2, 3, 3]


def test_a_decision_is_a_reason_for_a_handover_also_of_a_site_that_restarts_often(
    runs: Runs,
) -> None:
    store = runs.begin("decided", rounds={"rounds": 3, "quorum": 2})
    seats = dict(runs.places.sit().seats)
    del seats["west"]
    folder = runs.federation.presences
    for number in range(presence.FREE_RESTARTS + 3):
        presence.record(folder, "west", f"process {number}", None)

    def decide(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind == "train":
            presence.record_decision(folder, "west", str(header.get("round")))
        return text, body

    one = presence.presence(folder, "west")
    assert one is not None
    assert not one.settled
    ended = runs.run_job(store, FaultyLink(site_services.LocalLink(seats), "north", decide))
    assert ended["why"] == "site 'west' is ready to join"
    (folder / "west.json").unlink()


def jobs_of_a_site_that_restarts(runs: Runs, rounds: int) -> int:
    """How many jobs a run takes while a site claims in every round that it has restarted."""
    store = runs.begin("restless", rounds={"rounds": rounds, "quorum": 2, "evaluate_every": rounds})
    seats = dict(runs.places.sit().seats)
    del seats["west"]
    claims = itertools.count()

    def restart(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        if kind == "train":
            presence.record(runs.federation.presences, "west", f"process {next(claims)}", None)
        return text, body

    for jobs in itertools.count(1):
        link = FaultyLink(site_services.LocalLink(seats), "north", restart)
        if runs.run_job(store, link)["state"] == "finished":
            return jobs
    return 0


def test_a_site_that_restarts_again_and_again_forces_few_jobs(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the next job anyway, and starts one itself once it has stayed for a while."""
    monkeypatch.setattr(presence, "FREE_RESTARTS", 1)
    with monkeypatch.context() as naive:
        naive.setattr(presence.Presence, "settled", True)
        assert jobs_of_a_site_that_restarts(runs, 5) == 5
    (runs.federation.presences / "west.json").unlink()
    assert jobs_of_a_site_that_restarts(runs, 5) == 3  # the first, for its coming, for a restart


@pytest.mark.parametrize("name", ["../..", "../admitted", "nowhere", "/etc"])
def test_only_a_run_of_the_federation_is_continued(runs: Runs, name: str) -> None:
    with pytest.raises(DeployError, match="is not a run of this federation"):
        run_job(runs.federation.folder, name, "", 1, runs.places.sit())
    assert not list(runs.federation.folder.rglob(JOB_FILE))


def test_sites_do_not_learn_the_coordinators_paths(site_images: Path) -> None:
    program = site_services.program(site_images)
    model = program.model.model_copy(update={"weights": site_images / "w.pth", "sha256": "0" * 64})
    program = replace(program, model=model)
    table = program_for_sites(program)
    assert str(site_images) not in json.dumps(table)
    assert parse(table, Path("/"))[0].fingerprint == program.fingerprint


ONCE: dict[str, dict[str, Any]] = {
    "masks": {"secure": {"name": "secagg"}},
    "noise at the coordinator": {
        "privacy": {"name": "central", "noise_multiplier": 1.0},
        "rounds": {"weighting": "uniform"},
    },
}


@pytest.mark.parametrize("why", ONCE)
def test_a_round_is_not_computed_again_because_its_measurement_was_interrupted(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Another sum of it might be refused; fresh noise on it would not be accounted."""
    store = runs.begin("once", **ONCE[why])
    seen: list[Any] = []

    def killed(engine: RemoteEngine, vector: Any, round: int, *rest: Any) -> Any:
        seen.append(vector.clone())
        raise SiteError("killed", "")

    with monkeypatch.context() as crash:
        crash.setattr(RemoteEngine, "measure", killed)
        assert runs.run_job(store)["cause"] == "killed"
    assert store.load_checkpoint() is None
    link = FaultyLink(runs.places.sit(), "", lambda *_: ("", b""))
    measured: list[Any] = []
    original = RemoteEngine.measure

    def measure(engine: RemoteEngine, vector: Any, round: int, *rest: Any) -> Any:
        measured.append(vector.clone())
        return original(engine, vector, round, *rest)

    monkeypatch.setattr(RemoteEngine, "measure", measure)
    assert runs.run_job(store, link)["state"] == "finished"
    assert measured[0].equal(seen[0])
    assert sum(kind == "train" for _, kind in link.asked) == len(SITES), "in the second round only"
    assert [line["round"] for line in store.history()] == [1, 2]
    assert store.history()[0]["sites"] == sorted(SITES)
    assert store.load_unmeasured(3) is None


def deaf(lost: list[str]) -> Any:
    """A site that dies between its last update and measuring, while `lost` is not empty."""

    def alter(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[Any, Any]:
        if kind == "measure" and lost and header["round"] == 2:
            raise ConnectionError
        return text, body

    return alter


def test_the_last_model_is_measured_again_with_a_site_that_died_after_training(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    whole, store = runs.begin("whole"), runs.begin("died", rounds={"quorum": 2})
    lost = ["north"]
    outcome = runs.run_job(store, FaultyLink(runs.places.sit(), "north", deaf(lost)))
    assert outcome["state"] == "handover"
    assert "north" in outcome["why"]
    assert [line["round"] for line in store.history()] == [1]
    lost.clear()
    asked = FaultyLink(runs.places.sit(), "north", deaf(lost))
    assert runs.run_job(store, asked) == runs.run_job(whole) == {"number": 1, "state": "finished"}
    assert ("north", "train") not in asked.asked  # it is measured, and no round is trained again
    ours, theirs = (one.read_json("summary.json") for one in (store, whole))
    assert ours["score"] == theirs["score"]
    assert "not_measured" not in ours


def test_a_trained_model_is_measured_without_the_site_that_does_not_come_back(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a quorum every site has to train; but then whoever is there measures the result,
    whether its owner has drained it or not, and nobody who comes only now."""
    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    store, seats = runs.begin("dead"), dict(runs.places.sit().seats)
    late = seats.pop("west")
    link = FaultyLink(site_services.LocalLink(seats), "north", deaf(["north"]))
    assert runs.run_job(store, link)["state"] == "handover"
    assert is_trained(store, store.program()[0])
    del seats["north"]
    drain(runs.places.root / "south", True)
    link = FaultyLink(site_services.LocalLink({**seats, "west": late}), "", deaf([]))
    try:
        assert runs.run_job(store, link) == {"number": 1, "state": "finished"}
    finally:
        drain(runs.places.root / "south", False)
    assert {site for site, _ in link.asked} == {"south"}
    summary = store.read_json("summary.json")
    assert list(summary["not_measured"]) == ["north"]
    assert store.read_json("received.json")["sites"] == ["south"]
    assert store.read_json("run.json")["declared"].keys() == {"north", "south"}
    why = {event["site"]: event["why"] for event in runs.federation.events()}
    assert "came after the last round" in why["west"]


def test_a_site_with_other_images_does_not_end_a_trained_run_without_figures(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked alone, and says something else than when it joined: nobody is left to measure."""
    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    store, seats = runs.begin("other"), dict(runs.places.sit().seats)
    link = FaultyLink(site_services.LocalLink(seats), "north", deaf(["north"]))
    assert runs.run_job(store, link)["state"] == "handover"

    def lie(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[Any, Any]:
        fields = json.loads(text)
        if "declared" in fields:
            fields["declared"]["test"] += 1
        return json.dumps(fields), body

    alone = site_services.LocalLink({"south": seats["south"]})
    ended = runs.run_job(store, FaultyLink(alone, "south", lie))
    assert (ended["state"], ended["again"]) == ("failed", True)
    assert "no site is there to measure the trained model" in ended["cause"]
    assert not (store.folder / "summary.json").exists()
    assert runs.run_job(store, site_services.LocalLink(seats))["state"] == "finished"
    assert "not_measured" not in store.read_json("summary.json")


def test_a_drained_site_is_not_in_a_run_that_only_says_it_is_trained(runs: Runs) -> None:
    program, link = runs.begin("said").program()[0], runs.places.sit()
    drain(runs.places.root / "south", True)
    try:
        absent = propose(program, "never", link, {}, Trained(len(SITES))).absent
    finally:
        drain(runs.places.root / "south", False)
    assert list(absent) == ["south"]


def test_nobody_waits_for_the_figures_of_a_revoked_site(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "SILENCE", 0.2)

    def leave(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[Any, Any]:
        if kind == "measure" and header["round"] == 2:
            (runs.federation.folder / "revoked.json").write_text('{"north": "left"}')
            raise ConnectionError
        return text, body

    store = runs.begin("revoked")
    ended = runs.run_job(store, FaultyLink(runs.places.sit(), "north", leave))
    assert ended == {"number": 1, "state": "finished"}
    assert list(store.read_json("summary.json")["not_measured"]) == ["north"]


def test_figures_say_whom_they_lack(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "SILENCE", 0.2)
    store = runs.begin("lacking", rounds={"quorum": 2})
    for state in ("handover", "finished"):
        link = FaultyLink(runs.places.sit(), "north", deaf(["north"]))
        assert runs.run_job(store, link)["state"] == state
    line, summary = store.history()[-1], store.read_json("summary.json")
    assert line["sites"] == list(SITES)
    for told in (line, summary, store.read_json("evaluation.json")):
        assert list(told["not_measured"]) == ["north"]
    assert list(summary["by_site"]) == ["south", "west"]
    assert "not_measured" not in store.history()[0]
    assert any("'north'" in str(note) for note in figure_notes(read(store.folder)))


def test_a_site_with_other_code_takes_no_part_and_both_versions_are_named(runs: Runs) -> None:
    def other(kind: str, header: dict[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
        answer = json.loads(text)
        if "package" in answer:
            answer["package"]["sha256"] = "f" * 64
        return json.dumps(answer), body

    store = runs.begin("most", rounds={"quorum": 2})
    outcome = runs.run_job(store, FaultyLink(runs.places.sit(), "west", other))
    assert outcome["state"] == "finished"
    assert [line["sites"] for line in store.history()] == [["north", "south"]] * 2
    ours = installed()
    (event, *_) = runs.federation.events()
    assert event["why"] == (
        f"site 'west' runs FedSight {ours.version} (ffffffffffff), and the coordinator {ours}"
    )
    ended = runs.run_job(runs.begin("all"), FaultyLink(runs.places.sit(), "west", other))
    assert (ended["state"], ended["again"]) == ("failed", False)


def test_a_site_whose_contract_asks_for_more_sites_may_be_asked_again(runs: Runs) -> None:
    runs.places.write_owner("west", owner(runs.places, "west", sites=3))
    seats = dict(runs.places.sit().seats)
    two = site_services.LocalLink({name: seats[name] for name in ("north", "west")})
    store = runs.begin("two")
    ended = runs.run_job(store, two)
    assert (ended["state"], ended["again"], ended["family"]) == ("failed", True, "SiteError")
    assert "at least 3 sites, and there are 2" in ended["cause"]
    assert runs.run_job(store)["state"] == "finished"


def test_a_site_opens_no_image_for_a_coordinator_with_other_code(runs: Runs) -> None:
    store, seats = runs.begin("other"), runs.places.sit().seats
    counted = {site: len(Ledger(runs.places.root / site).entries()) for site in SITES}
    ended = runs.run_job(store, OtherCoordinator(seats))
    assert (ended["state"], ended["again"]) == ("failed", False)
    assert f"runs FedSight {installed().version} (ffffffffffff), and this site" in ended["cause"]
    for site in SITES:
        assert seats[site]._opened is None
        new = Ledger(runs.places.root / site).entries()[counted[site] :]
        assert [entry.kind for entry in new] == ["refused"]


def test_a_run_records_the_code_of_each_of_its_jobs(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ours = runs.begin("code", rounds={"rounds": 3}), installed()
    for _ in range(2):  # the same code twice
        ask(store.folder, "pause")
        runs.run_job(store)
    assert store.read_json("run.json")["packages"] == [{"after_round": 0, **ours.table()}]
    newer = replace(ours, sha256="a" * 64)
    monkeypatch.setattr("fedsight.deploy.server.job.installed", lambda: newer)
    assert runs.run_job(store)["state"] == "finished"
    assert store.read_json("run.json")["packages"] == [
        {"after_round": 0, **ours.table()},
        {"after_round": 2, **newer.table()},
    ]


def test_a_quorum_that_refusals_leave_out_of_reach_ends_the_run_at_once(runs: Runs) -> None:
    for site in ("south", "west"):
        runs.places.write_owner(site, owner(runs.places, site, tasks=["faces"]))
    ended = runs.run_job(runs.begin("few", rounds={"quorum": 2}))
    assert (ended["state"], ended["again"], ended["family"]) == ("failed", False, "RefusedError")
    assert "1 sites take part, and rounds.quorum is 2" in ended["cause"]
    assert all(f"site '{site}'" in ended["cause"] for site in ("south", "west"))
