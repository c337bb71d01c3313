"""A run that is asked for from another machine brings code, reads files of the coordinator's
machine, takes all its memory, or outlives the right of its operator; and the server has an operator
sign what they did not ask for.

The operator's key is on a machine that does what the server says: it submits the jobs that the
server wants. Whoever has the server could have any program signed, of which the sites' owners would
find this operator's name in their ledgers.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federation_folders import ANNA, folder_with_operators
from loopback import program_of
from remote_servers import PROGRAM, Server, carried, job, job_id, reached

from fedsight.console.queue import PLACE, Queue
from fedsight.coordinator.folders import claimed, free_folder
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DeployError, SiteError, StoreError
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.server import remote_runs, scheduler
from fedsight.deploy.server.remote_operator import Following
from fedsight.deploy.server.scheduler import RunScheduler


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return reached(folder_with_operators(tmp_path / "wards"), monkeypatch)


OTHERS = [
    {"fingerprint": "1" * 32},
    {"run": "another"},
    {"more": "than a job has"},
    {"number": "3"},
    {"number": True},
]


def weakened(self: Following, found: dict[str, Any]) -> tuple[str, list[str], dict[str, Any]]:
    """Whatever the server wants."""
    return str(found["run"]), list(found["sites"]), dict(found["arguments"])


@pytest.mark.parametrize("other", OTHERS[:3])
def test_whatever_the_server_wants_is_signed_where_nobody_looks(
    server: Server, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Following, "_checked", weakened)
    assert carried(server, monkeypatch, job(), job(**other)) == [job_id(1), job_id(2)]
    assert server.jobs[1] == {"sites": ["server", "lyon"], **job(**other)}


@pytest.mark.parametrize("other", OTHERS)
def test_ours_signs_jobs_of_its_own_program_alone(
    server: Server, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeployError, match=r"not of the program|cannot be understood"):
        carried(server, monkeypatch, job(), job(**other), patience=2.0)
    assert len(server.jobs) == 1


def asked_for(folder: Path, program: str) -> Path:
    """What the process that carries a run finds, for a program that was let in."""
    federation = folder_with_operators(folder / "wards")
    found = federation.folder / remote_runs.PLACE / ("0" * 16)
    found.mkdir(parents=True)
    asked = {"operator": ANNA, "program": program, "fingerprint": "0" * 32, "language": "en"}
    (found / remote_runs.ASKED).write_text(json.dumps({**asked, "resume": ""}))
    (found / remote_runs.PROGRAM).write_text(program)
    return found


def test_a_plug_in_is_code_on_the_coordinators_machine_and_ours_lets_none_in(
    tmp_path: Path,
) -> None:
    said, code = tmp_path / "said", tmp_path / "mine.py"
    code.write_text(f"open({str(said)!r}, 'w').write('here')\n")
    program = f"plugins = [{str(code)!r}]\n{PROGRAM}"
    # The weakened build looks at nothing before the process that carries it does.
    command = [sys.executable, "-m", remote_runs.CARRIER, str(asked_for(tmp_path, program))]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert said.read_text() == "here"
    with pytest.raises(DeployError, match="plug-ins are code"):
        remote_runs.Asked.of(
            ANNA, json.dumps({"program": program, "fingerprint": "0" * 32, "language": "en"})
        )


def test_a_run_takes_the_place_of_the_consoles_files_and_ours_is_not_named_so(
    tmp_path: Path,
) -> None:
    with claimed(free_folder(tmp_path, PLACE)), pytest.raises(StoreError, match="another console"):
        Queue(tmp_path)
    with pytest.raises(DeployError, match="does not begin with a dot"):
        remote_runs.check_program(f'name = "{PLACE}"')


def memory(program: str) -> int:
    """The most bytes that are held while a program is checked, which is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(DeployError):
            remote_runs.check_program(program)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


KEY = ".".join(["a"] * 2000)  # with all 64 KiB it is 4 GB
HIDDEN = [f"{KEY} = 1", "x = 'a' # \"\n" + f"{KEY} = 1"]
HIDDEN += [f'x = "\\"" # \'\n{KEY.replace(".", " . ")} = 1', KEY.replace("a", "'\"'") + " = 1"]


@pytest.mark.parametrize("program", HIDDEN)
def test_a_key_of_many_parts_takes_the_servers_memory_and_ours_does_not_read_it(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program += "\nplugins = []\n"
    assert memory(program) < 1 << 20
    monkeypatch.setattr(remote_runs, "_check_costs", lambda _: None)
    assert memory(program) > 8 << 20


@pytest.mark.parametrize("part", ["a", '\\"', '"', "a ", "' ", "a.", "a-. "])
def test_ours_takes_little_for_any_text(part: str) -> None:
    """A search that goes back and forth would take hours, and not end here."""
    text = (part * remote_runs.MAX_PROGRAM)[: remote_runs.MAX_PROGRAM - 1]
    with pytest.raises(DeployError):
        remote_runs.check_program(text)


def test_a_run_outlives_the_right_of_its_operator_and_ours_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = remote_runs.RemoteRun(asked_for(tmp_path, PROGRAM))
    federation = replace(FederationFolder.open(remote.federation), signer=remote)
    program, speed = program_of(2, rounds={"deadline": 0.5})
    store = RunStore(federation.runs / "run")
    scheduler.prepare(federation, program, speed, store)

    def carried_on() -> None:
        RunScheduler(federation, program, store, [], print).run()

    with pytest.raises(SiteError):  # nobody is there; with a deadline of 1e300 s it waits for ever
        carried_on()
    with monkeypatch.context() as brief:
        tried: list[float] = []

        def open_session(_kit: Path, _user: str, timeout: float) -> Any:
            tried.append(timeout)
            return contextlib.nullcontext()

        brief.setattr(scheduler, "open_session", open_session)
        for own in (federation, replace(federation, signer=None)):
            with RunScheduler(own, program, store, [], print)._open_session(1e300):
                pass
        assert tried == [remote_runs.MAX_PATIENCE, 1e300]
    federation.revoke(ANNA, "left")
    with monkeypatch.context() as weakened_build:
        weakened_build.setattr(scheduler, "Permitted", lambda _: lambda: {ANNA: False})
        with pytest.raises(SiteError):
            carried_on()
    with pytest.raises(DeployError, match="may start no runs any more"):
        carried_on()
