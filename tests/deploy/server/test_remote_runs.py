"""Runs that are asked for from other machines: what is begun, who follows, what is signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from federation_folders import ANNA, folder_with_operators
from remote_servers import ASKED, PROGRAM, Server, carried, going_on, job, job_id, reached

from fedsight.core.errors import DeployError, Interrupted, StoreError
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder
from fedsight.deploy.server import remote_runs
from fedsight.deploy.server.operator import LostError
from fedsight.deploy.server.remote_runs import RemoteRun, begin, check_program, seen, submitted


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationFolder:
    """No process is started: what is carried is for tests with real processes."""
    monkeypatch.setattr(remote_runs, "_start", lambda found: None)
    return folder_with_operators(tmp_path / "wards")


def begun(federation: FederationFolder, operator: str = ANNA, **other: Any) -> RemoteRun:
    id = begin(federation, operator, json.dumps(ASKED | other))["id"]
    return RemoteRun(federation.folder / remote_runs.PLACE / id)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("plugins = ['mine.py']", "plug-ins are code"),
        ("plugins = []", "plug-ins are code"),
        ("[model]\nweights = '/etc/shadow'", "model.weights = '/etc/shadow' names a file"),
        ("[model]\nweights = '~root'", "names a file"),
        ("[model]\nweights = '..'", "names a file"),
        ("[public]\nsource = {name = 'idx', path = 'a/b'}", "public.source.path = 'a/b' names"),
        ("[task]\nclasses = ['a', 'b\\\\c']", "names a file"),
        ("[model]\n'/etc/x' = 1", "names a file"),
        ("name = '.ward'", "the name of a run does not begin with a dot"),
        ("[[", "cannot be read"),
        ("x = " + "[" * 5000, "cannot be read"),
        ("\ud800 = 1", "cannot be read"),
        ('name = """x"""', "several lines"),
        ("[a.b]\nc = {" + "'d' . " * 9 + "e = 1}", "more than 9 parts"),
        ("[" + "a." * 9 + "b]", "more than 9 parts"),
        ("#" * (remote_runs.MAX_PROGRAM + 1), "bytes"),
    ],
)
def test_a_program_brings_no_code_and_names_no_files(text: str, cause: str) -> None:
    with pytest.raises(DeployError, match=cause) as caught:
        check_program(text)
    assert caught.value.cure


@pytest.mark.parametrize(
    "other",
    [
        {"language": "xx"}, {"fingerprint": "../x"}, {"program": 1},
        {"more": "x"}, {"resume": None}, {"program": "plugins = ['mine.py']"},
        {"resume": "x" * 256}, {"resume": "a\nb"},
    ],
)  # fmt: skip
def test_what_cannot_be_begun_leaves_nothing(
    federation: FederationFolder, other: dict[str, Any]
) -> None:
    with pytest.raises(DeployError):
        begun(federation, **other)
    in_anothers_name = json.dumps(ASKED | {"operator": OPERATOR})
    for broken in ("", "[]", "{", "{}", in_anothers_name):
        with pytest.raises(DeployError):
            begin(federation, ANNA, broken)
    assert not (federation.folder / remote_runs.PLACE).exists()
    assert federation.events() == []


def test_a_run_that_is_to_go_on_is_one_of_the_federation(federation: FederationFolder) -> None:
    with pytest.raises(StoreError, match="has no run 'far'"):
        begun(federation, resume="far")
    assert not (federation.folder / remote_runs.PLACE).exists()
    (federation.runs / "far").mkdir()
    (federation.runs / "far" / "run.toml").touch()
    assert begun(federation, resume="far").asked.resume == "far"


def test_programs_as_we_write_them_are_taken() -> None:
    long = "one. two. three. four. five. six. seven. eight. nine. ten. \"eleven\"\n'twelve'"
    text = tomli_w.dumps({"name": long, "data": {"a.b.c.d.e.f.g.h.i.j.k": [1.5, 2.5], "": "\\"}})
    check_program(text)
    check_program(PROGRAM)


def test_who_asks_is_in_the_history_and_nobody_else_follows(federation: FederationFolder) -> None:
    found = begun(federation)
    (event,) = federation.events()
    assert (event["event"], event["what"], event["operator"]) == ("asked", "run", ANNA)
    assert found.asked.operator == ANNA
    for operator, id in (
        (OPERATOR, found.folder.name), (ANNA, "0" * 16), (ANNA, "../operators"), (ANNA, ""),
    ):  # fmt: skip
        with pytest.raises(DeployError, match="no such run"):
            seen(federation, operator, id, "0")
        with pytest.raises(DeployError, match="no such run"):
            submitted(federation, operator, id, '{"number": 1, "job": "x"}')


def test_an_operator_has_a_few_at_a_time_and_old_ones_go(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [begun(federation) for _ in range(remote_runs.MAX_GOING)]
    with pytest.raises(DeployError, match="are going on"):
        begun(federation)
    begun(federation, OPERATOR)
    held[0].end(0)
    monkeypatch.setattr(remote_runs, "KEEP", -1.0)
    begun(federation)
    assert not held[0].folder.exists()
    assert held[1].folder.exists()
    monkeypatch.setattr(remote_runs, "START_TIMEOUT", -1.0)  # none of them was ever carried
    begun(federation)
    assert not held[1].folder.exists()
    monkeypatch.setattr(remote_runs, "KEEP", 1e9)
    monkeypatch.setattr(remote_runs, "MOST_KEPT", 2)
    for _ in range(5):
        begun(federation)
    assert len(list((federation.folder / remote_runs.PLACE).glob("*/"))) == 3


def test_what_is_said_is_read_once_and_the_end_is_told(federation: FederationFolder) -> None:
    found = begun(federation)
    name = found.folder.name
    assert seen(federation, ANNA, name, "0") == {"said": "", "next": 0, "job": None, "code": None}
    (found.folder / remote_runs.SAID).write_bytes("Rünning\n".encode())
    first = seen(federation, ANNA, name, "0")
    assert (first["said"], first["next"]) == ("Rünning\n", 9)
    assert seen(federation, ANNA, name, "9")["said"] == ""
    found.end(7)
    assert seen(federation, ANNA, name, "9")["code"] == 7


def test_a_carrier_that_died_is_told(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = begun(federation)
    monkeypatch.setattr(remote_runs, "START_TIMEOUT", -1.0)
    assert seen(federation, ANNA, found.folder.name, "0")["code"] == 1
    with found.exclusive():
        assert seen(federation, ANNA, found.folder.name, "0")["code"] is None


@pytest.fixture
def server(federation: FederationFolder, monkeypatch: pytest.MonkeyPatch) -> Server:
    return reached(federation, monkeypatch)


def test_jobs_of_the_program_are_submitted_where_the_operator_is(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carried(server, monkeypatch, job(), job(number=4)) == [job_id(1), job_id(2)]
    assert server.jobs == [{"sites": ["server", "lyon"], **job(number=n)} for n in (3, 4)]


def test_a_job_is_submitted_once_though_the_answer_is_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, lost = Server.ask, iter([True, True, False])

    def sometimes(self: Server, what: str, *words: str) -> dict[str, Any]:
        if what == "submitted" and next(lost, False):
            raise LostError("the server did not answer", "")
        return ask(self, what, *words)

    monkeypatch.setattr(Server, "ask", sometimes)
    assert carried(server, monkeypatch, job()) == [job_id(1)]
    assert len(server.jobs) == 1


def test_ctrl_c_stops_the_run_and_a_second_one_leaves_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    ask = Server.ask

    def pressed(self: Server, what: str, *words: str) -> dict[str, Any]:
        told.append(what)
        if what == "stop":
            return {}
        if what == "seen" and server.jobs:
            raise KeyboardInterrupt
        return ask(self, what, *words)

    monkeypatch.setattr(Server, "ask", pressed)
    with pytest.raises(Interrupted, match="no longer followed"):
        carried(server, monkeypatch, job(), patience=1.0)
    assert told.count("stop") == 1


def test_a_job_of_a_carrier_that_died_is_not_submitted(federation: FederationFolder) -> None:
    found = begun(federation)
    (found.folder / remote_runs.JOB).write_text(json.dumps({"number": 1}))
    assert seen(federation, ANNA, found.folder.name, "0")["job"] == {"number": 1}
    found.end(1)
    assert seen(federation, ANNA, found.folder.name, "0")["job"] is None


def test_an_operator_who_does_not_answer_is_named(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = begun(federation)
    with pytest.raises(DeployError, match=ANNA) as caught:
        found.submit("first", ["lyon"], job(), 0.0, going_on)
    assert "--resume first" in caught.value.cure
    assert seen(federation, ANNA, found.folder.name, "0")["job"] is None

    def stop() -> None:
        raise Interrupted("stopped", "")

    monkeypatch.setattr(remote_runs, "MAX_PATIENCE", 0.0)
    with pytest.raises(DeployError, match="for 0 s"):
        found.submit("first", ["lyon"], job(), 1e300, going_on)
    monkeypatch.setattr(remote_runs, "MAX_PATIENCE", 20.0)
    with pytest.raises(Interrupted):
        found.submit("first", ["lyon"], job(), 20.0, stop)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"number": 1}', '{"number": "1", "job": "x"}', '{"number": 1, "job": "x"}'],
)
def test_an_answer_that_is_malformed_is_refused(federation: FederationFolder, text: str) -> None:
    with pytest.raises(DeployError):
        submitted(federation, ANNA, begun(federation).folder.name, text)


def test_two_processes_do_not_carry_one_run(federation: FederationFolder) -> None:
    found = begun(federation)
    with found.exclusive(), pytest.raises(StoreError, match="another process"), found.exclusive():
        pass
