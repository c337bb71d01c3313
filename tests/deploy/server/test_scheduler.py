"""The run scheduler: whose outcome counts, how many failures end a run, and whom it waits for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clocks import heard_ago
from loopback import program_of

from fedsight.coordinator.live import Live
from fedsight.coordinator.store import Checkpoint, RunStore
from fedsight.core.errors import (
    ConfigError,
    EngineError,
    FedSightError,
    HeldError,
    RefusedError,
    SiteError,
)
from fedsight.deploy.membership import presence
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server import scheduler
from fedsight.deploy.server.job import JOB_FILE, read_outcome
from fedsight.deploy.server.operator import OperatorSession
from fedsight.deploy.server.scheduler import RunScheduler
from fedsight.program.config import parse

LOST = {"state": "lost", "family": "EngineError", "cause": "a process was killed", "cure": ""}
LEFT = {**LOST, "state": "left", "cause": "site 'b' left"}
ABSENT = {"state": "failed", "again": True, "family": "SiteError", "cause": "a site", "cure": ""}
HELD = {**ABSENT, "again": False, "family": "HeldError", "cause": "it waits"}
REFUSED = {**ABSENT, "again": False, "family": "RefusedError"}


@pytest.fixture(autouse=True)
def serving(tmp_path: Path) -> Iterator[None]:
    """A server that runs."""
    home = tmp_path / "server"
    home.mkdir()
    with supervisor.exclusive(home, "the server"):
        (home / supervisor.PROCESS_FILE).write_text(str(os.getpid()))
        yield


class Scripted(RunScheduler):
    """A scheduler of jobs that end as a script says; then one more ends well."""

    script: list[dict[str, Any]]
    jobs: list[list[str]]

    def _run_job(self, sites: Sequence[str]) -> dict[str, Any]:
        self.jobs.append(list(sites))
        self._began = time.time()
        return self.script.pop(0) if self.script else {"state": "finished"}

    def _finish(self) -> dict[str, Any]:
        return {"jobs": len(self.jobs)}


def made(tmp_path: Path, sites: str, quorum: int | None = None) -> tuple[Scripted, list[str]]:
    """A scheduler in a federation whose `sites` were admitted, and what it says."""
    for part in ("admitted", "server/sites", "runs/first"):
        (tmp_path / part).mkdir(parents=True)
    for name in sites:
        (tmp_path / "admitted" / f"{name}.toml").touch()
    program, speed = program_of(len(sites), rounds={"quorum": quorum, "deadline": 5.0})
    store = RunStore(tmp_path / "runs" / "first")
    store.create(program, speed, {"command": "run"}, force=True)
    federation = FederationFolder(tmp_path, Invitation("wards", "localhost", 8002, "SHA256:00"))
    said: list[str] = []
    found = Scripted(federation, program, store, [], said.append)
    found.script, found.jobs = [], []
    return found, said


def arrive(one: Scripted, *names: str, state: presence.State = "") -> None:
    for name in names:
        presence.record(tmp(one), name, "process", None, "", state)


def tmp(one: Scripted) -> Path:
    return one._federation.presences


def test_the_outcome_of_an_earlier_job_does_not_count(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert read_outcome(store, 7) is None
    store.write_json(JOB_FILE, {"number": 6, "state": "finished"})
    assert read_outcome(store, 7) is None
    store.write_json(JOB_FILE, {"number": 7, "state": "finished"})
    assert read_outcome(store, 7) == {"number": 7, "state": "finished"}


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([LOST, LOST, ABSENT], None),  # two crashes and one absence are neither three nor ten
        ([ABSENT, LOST, LOST, LOST, ABSENT, LOST], None),
        ([LOST] * 9, None),
        ([LOST] * 10, EngineError),
        ([LEFT] * 12, None),  # one site would end the run of all others
        ([LEFT, *[LOST] * 9, LEFT, LOST], EngineError),
        ([ABSENT, LOST, ABSENT, ABSENT], SiteError),
        ([REFUSED], RefusedError),
    ],
)
def test_each_kind_of_failure_has_a_limit_of_its_own(
    tmp_path: Path, script: list[dict[str, Any]], error: type[FedSightError] | None
) -> None:
    one, _ = made(tmp_path, "ab")
    arrive(one, "a", "b")
    one.script = list(script)
    if error is None:
        assert one.run() == {"jobs": len(script) + 1}
    else:
        with pytest.raises(error):
            one.run()
        assert len(one.jobs) == len(script)


def test_a_held_run_is_tried_again_whenever_its_owner_may_have_decided_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner approves several programs in one sitting, and this one last."""
    one, _ = made(tmp_path, "ab")
    arrive(one, "a", "b")
    for number in range(presence.FREE_RESTARTS + 2):  # it was restarted often, too
        presence.record(tmp(one), "a", f"process {number}", None)
    one.script = [HELD, HELD]
    monkeypatch.setattr(presence, "MERGED", 1.0)
    monkeypatch.setattr(presence, "FREE_RESTARTS", 1)
    monkeypatch.setattr(presence, "FIRST_WAIT", 1.0)
    before = Scripted._run_job

    def decides(self: Scripted, sites: Sequence[str]) -> dict[str, Any]:
        ended = before(self, sites)
        for mark in ("another program", "a third", "this one") if len(self.jobs) == 1 else ():
            presence.record_decision(tmp(self), "a", mark)
        return ended

    monkeypatch.setattr(Scripted, "_run_job", decides)
    assert one.run() == {"jobs": 3}


def test_a_held_run_is_given_up_at_its_deadline(tmp_path: Path) -> None:
    one, _ = made(tmp_path, "ab")
    arrive(one, "a", "b")
    one.script = [HELD]
    one._program = replace(
        one._program, rounds=one._program.rounds.model_copy(update={"deadline": 0.5})
    )
    with pytest.raises(HeldError):
        one.run()
    assert len(one.jobs) == 1


def test_a_job_begins_without_sites_that_are_drained_or_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LATE_SITES_TIMEOUT", 0.0)
    one, said = made(tmp_path, "abcd", quorum=2)
    arrive(one, "a", "b")
    arrive(one, "c", state="drained")
    arrive(one, "d", state="leaving")
    one.run()
    assert one.jobs == [["a", "b"]]
    assert said == [
        "going on without 'c': site 'c' was drained by its owner",
        "going on without 'd': site 'd' is not connected",
    ]


def test_a_model_that_is_trained_waits_for_no_site_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a quorum, so that before the last round the run does wait."""
    monkeypatch.setattr(scheduler, "LATE_SITES_TIMEOUT", 0.0)
    one, _ = made(tmp_path, "abc")
    one._store.write_json("run.json", {"declared": {"a": {}, "b": {}}})
    arrive(one, "a", state="drained")
    arrive(one, "c")
    rounds = one._program.rounds.rounds
    checkpoint = Checkpoint(rounds - 1, torch.zeros(1), {})
    one._store.save_checkpoint(checkpoint)
    one._program = replace(
        one._program, rounds=one._program.rounds.model_copy(update={"deadline": 0.5})
    )
    with pytest.raises(SiteError, match="missing: a, b"):
        one.run()
    one._store.save_checkpoint(replace(checkpoint, round=rounds, unmeasured={"sites": ["a", "b"]}))
    assert one.run() == {"jobs": 1}
    assert one.jobs == [["a", "c"]]  # c is not asked there


def test_a_job_begins_without_a_site_that_has_left_too_often_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LATE_SITES_TIMEOUT", 0.0)
    one, said = made(tmp_path, "ab", quorum=1)
    arrive(one, "a", "b")
    for _ in range(presence.FREE_RESTARTS):
        assert one._left(["b"])["state"] == "left"
    one.run()
    one._left(["b"])
    one.run()
    assert one.jobs == [["a", "b"], ["a"]]
    assert said == ["going on without 'b': site 'b' has left before jobs had started"]


class Session(OperatorSession):
    """Of a server that says of each job that it has this `state`."""

    def __init__(self, state: str) -> None:
        self.state = state

    def status(self, job: str) -> str:
        return self.state


def test_a_start_is_given_up_for_a_site_that_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one that is silent, only if the job could not start; otherwise nobody is to blame."""
    monkeypatch.setattr(scheduler, "STATUS_INTERVAL", 0.0)
    one, _ = made(tmp_path, "ab")
    arrive(one, "a", "b")
    before = dict(presence.presences(tmp(one)))
    assert one._wait_for_start(Session("FINISHED:ABORTED"), before)["state"] == "lost"
    arrive(one, "b", state="leaving")
    arrive(one, "b")  # the word alone is enough
    left = one._wait_for_start(Session("SUBMITTED"), before)
    assert (left["state"], left["cause"]) == (
        "left",
        "site 'b' left before a job with it had started",
    )
    heard_ago(tmp(one) / "b.json", presence.HEARTBEAT_TIMEOUT + 1)
    arrive(one, "a")
    before = dict(presence.presences(tmp(one)))
    one._store.write_json(JOB_FILE, {"number": one._number, "state": "running"})
    assert one._wait_for_start(Session("RUNNING"), before) is None, "a hiccup"
    (one._store.folder / JOB_FILE).unlink()
    left = one._wait_for_start(Session("FINISHED:ABORTED"), before)
    assert "site 'b' left" in left["cause"]


def test_who_is_missing_in_a_job_is_told_once_and_why(tmp_path: Path) -> None:
    one, said = made(tmp_path, "abc", quorum=1)
    arrive(one, "a", "b", "c")
    live = Live(one._store.folder, stops=False)
    why = "site 'c': contract.rounds: the contract permits 1 rounds, and the program has 2"
    live.absent({"c": why})
    live._write()
    for _ in range(3):
        one._report_sites(["a", "b", "c"])
    assert said == [f"going on without 'c': {why}"]
    arrive(one, "b", state="stopped")
    for _ in range(3):
        one._report_sites(["a", "b", "c"])
    assert said[1:] == ["site 'b' is connected, but one of its processes is suspended (SIGSTOP)"]


def test_a_program_is_checked_for_as_many_sites_as_the_federation_has(tmp_path: Path) -> None:
    """Not for the ten of a split that only simulations have."""
    one, _ = made(tmp_path, "abc")
    base = {"data": {"name": "folder", "path": "images"}, "rounds": {"weighting": "uniform"}}
    for secure, quorum, problem in (
        ({"name": "secagg"}, 2, None),
        ({"name": "none"}, 4, "a cohort of 3 cannot give 4 good replies"),
        ({"name": "none"}, 3, None),
    ):
        rounds = {**base["rounds"], "quorum": quorum}
        program, speed = parse({**base, "secure": secure, "rounds": rounds}, tmp_path)
        store = RunStore(tmp_path / "runs" / f"{secure['name']}{quorum}{problem is None}")
        if problem is None:
            scheduler.prepare(one._federation, program, speed, store)
            continue
        with pytest.raises(ConfigError) as caught:
            scheduler.prepare(one._federation, program, speed, store)
        assert problem in str(caught.value)
    program, _ = parse({**base, "secure": {"name": "secagg"}, "rounds": {"quorum": 2}}, tmp_path)
    simulated = [found for found in program.check() if found.where == "rounds.quorum"]
    assert "a quorum of 2 is too small to unmask a round" in simulated[0].cause
    assert not [one for one in program.check_elsewhere(None) if one.where == "rounds.quorum"]
