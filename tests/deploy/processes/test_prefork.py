"""The prefork process: what its forks get, what they do not inherit, and when they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import is_running, python_path, wait_until

from fedsight.core.errors import EngineError
from fedsight.deploy.processes import prefork, spawn

SUPERVISE = """\
import pathlib, sys
from fedsight.deploy.processes import supervisor
supervisor.RESTART_DELAYS = (0.01, 0.02)
folder = pathlib.Path(sys.argv[1])
with supervisor.exclusive(folder, "it"):
    imports = ([], ["heavy"]) if sys.argv[2] == "on demand" else (["heavy"], [])
    with supervisor.Supervisor("requests", [str(folder)], folder, folder, imports) as made:
        made.run(print)
"""
HEAVY = """\
import os, pathlib
with (pathlib.Path(__file__).parent / "imported").open("a") as file:
    print(os.getpid(), file=file)
"""
# The supervised process: requests others, writes what came of it, and dies the first time.
REQUESTS = """\
import json, os, pathlib, sys, time
from fedsight.deploy.processes import spawn
folder = pathlib.Path(sys.argv[1])
if (folder / "first.json").exists():
    time.sleep(600)
with (folder / "output").open("wb") as output:
    read, write = os.pipe()
    os.write(write, b"through the pipe")
    one = spawn.start("prints", ["a word"], output.fileno(), [read], {"SECRET": "shared"})
    codes = [one.wait(), one.poll()]
    two = spawn.start("sleeps", [], output.fileno())
    running = two.poll()
    two.kill()
    codes += [running, two.wait()]
    unknown = spawn.start("not_there", [], output.fileno()).wait()
    three = spawn.start("sleeps", [str(folder / "awake")], output.fileno())
    while not (folder / "awake").exists():
        time.sleep(0.02)
    files = [os.readlink(path) for path in pathlib.Path(f"/proc/{three.pid}/fd").iterdir()]
    title = pathlib.Path(f"/proc/{three.pid}/cmdline").read_text()
found = {"title": title, "codes": codes, "unknown": unknown, "pid": three.pid, "files": files}
(folder / "part").write_text(json.dumps(found))
(folder / "part").rename(folder / "first.json")
os._exit(3)
"""
PRINTS = """\
import heavy, os, sys
print(sys.argv, os.environ["SECRET"], os.read(int(sys.argv[-1]), 100).decode())
sys.exit(7)
"""
SLEEPS = """\
import pathlib, sys, time
for word in sys.argv[1:]:
    pathlib.Path(word).touch()
time.sleep(600)
"""
IN_FORK = """\
import os, signal
from fedsight.core.errors import DataError, FedSightError
from fedsight.deploy.processes.prefork import run_in_fork
own = os.getpid()
def refuses(): raise DataError("bad image", "leave it out")
def dies(): os.kill(os.getpid(), signal.SIGKILL)
def cannot_read(): open("/proc/self/nothing")
def lacks_memory(): raise MemoryError
print(run_in_fork(lambda: ["a value", os.getpid() == own]), flush=True)
for work in (refuses, dies, lambda: 1 / 0, cannot_read, lacks_memory):
    try:
        run_in_fork(work)
    except FedSightError as error:
        print(type(error).__name__, error.cause, flush=True)
def no_more(): raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork, before = no_more, len(os.listdir("/dev/fd"))
try:
    run_in_fork(refuses)
except FedSightError as error:
    print(type(error).__name__, error.cause, len(os.listdir("/dev/fd")) - before, flush=True)
"""


@pytest.fixture(scope="module", params=["at once", "on demand"])
def supervised(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A running supervisor's folder, and what its process wrote before it died the first time."""
    folder = tmp_path_factory.mktemp("supervised")
    modules = {"heavy": HEAVY, "requests": REQUESTS, "prints": PRINTS, "sleeps": SLEEPS}
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": python_path(folder)}
    command = [sys.executable, "-c", SUPERVISE, str(folder), request.param]
    supervisor = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until((folder / "first.json").exists)
        assert supervisor.stdout is not None
        assert "ended with code 3" in supervisor.stdout.readline()
        yield folder, json.loads((folder / "first.json").read_text())
    finally:
        supervisor.terminate()
        supervisor.communicate()
    wait_until(lambda: not is_running(int((folder / "process.pid").read_text())))


def test_a_fork_gets_arguments_environment_and_descriptors_and_returns_its_exit_code(
    supervised: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = supervised
    first = (folder / "output").read_text().splitlines()[0]
    assert "prints.py', 'a word', '" in first
    assert first.endswith("'] shared through the pipe")
    assert found["codes"] == [7, 7, None, -signal.SIGKILL]


def test_a_module_that_fails_prints_why(supervised: tuple[Path, dict[str, Any]]) -> None:
    folder, found = supervised
    assert found["unknown"] == 1
    assert "No module named not_there" in (folder / "output").read_text()


def test_a_forks_title_is_the_module_that_it_runs(supervised: tuple[Path, dict[str, Any]]) -> None:
    folder, found = supervised
    assert found["title"].startswith(f"fedsight: sleeps {folder}/awake")


def test_modules_are_imported_once_for_all_forks(supervised: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = supervised
    assert len((folder / "imported").read_text().splitlines()) == 1


def test_a_fork_ends_with_its_requester(supervised: tuple[Path, dict[str, Any]]) -> None:
    wait_until(lambda: not is_running(supervised[1]["pid"]))


def test_a_fork_does_not_inherit_open_files(
    supervised: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = supervised
    files = [name for name in found["files"] if not name.startswith("/proc/")]
    assert sorted(files) == sorted(["/dev/null", *[str(folder / "output")] * 2])


def test_without_a_prefork_process_a_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(spawn.ADDRESS_VARIABLE)
    with (tmp_path / "output").open("wb") as output:
        environment = {"PYTHONPATH": python_path(tmp_path), "SECRET": "shared"}
        (tmp_path / "heavy.py").touch()
        (tmp_path / "prints.py").write_text(PRINTS)
        read, write = os.pipe()
        os.write(write, b"through the pipe")
        process = spawn.start("prints", ["a word"], output.fileno(), [read], environment)
        assert process.wait() == 7
    os.close(read)
    os.close(write)
    assert "'a word'" in (tmp_path / "output").read_text()


def test_a_program_that_ends_slowly_exits_with_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(spawn.ADDRESS_VARIABLE)
    code = """\
import builtins, time
class Late:
    def __del__(self, now=time.monotonic):  # among the last things that the interpreter does
        end = now() + 1.2
        while now() < end:
            pass
builtins.late = Late()
"""
    (tmp_path / "late.py").write_text(code)
    with (tmp_path / "output").open("wb") as output:
        ended = spawn.start(
            "late", [], output.fileno(), environment={"PYTHONPATH": python_path(tmp_path)}
        )
        assert ended.wait() == 0


def test_a_process_with_threads_forks_from_a_prefork_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "sleeps.py").write_text("import heavy\n" + SLEEPS)
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    before = os.environ[spawn.ADDRESS_VARIABLE]
    with (tmp_path / "output").open("wb") as output, prefork.prefork_process(["heavy"]):
        assert os.environ[spawn.ADDRESS_VARIABLE] != before
        first, second = (spawn.start("sleeps", [], output.fileno()) for _ in range(2))
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(0.1)
        first.terminate()
        assert first.wait() == -signal.SIGTERM
        assert first.poll() == -signal.SIGTERM
        assert second.poll() is None
    assert os.environ[spawn.ADDRESS_VARIABLE] == before
    assert second.wait() == -signal.SIGKILL
    assert len((tmp_path / "imported").read_text().splitlines()) == 1


def test_an_invalid_or_incomplete_request_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefork, "MAX_FOLDER_CHARACTERS", 0)  # as if TMPDIR were too long
    with (tmp_path / "output").open("wb") as output, prefork.prefork_process(["json"]):
        for request in (
            b"",
            b"\1",
            b"\xff\xff\xff\xff",
            b"\2\0\0\0{}",
            b"\2\0\0\0[]",
            b"\x09\0\0\0",
        ):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(os.environ[spawn.ADDRESS_VARIABLE])
                connection.sendall(request)
        with pytest.raises(EngineError, match="no process can be started here"):
            spawn.start("json.tool", [], 999)  # no such descriptor
        assert spawn.start("json.tool", ["--help"], output.fileno()).wait() == 0
    assert b"usage" in (tmp_path / "output").read_bytes()


def test_a_prefork_process_that_fails_to_start_is_reported() -> None:
    with (
        prefork.prefork_process(["not_there"]),
        pytest.raises(EngineError, match="no process can be started"),
    ):
        spawn.start("json.tool", [], 1)


def test_a_prefork_process_that_is_gone_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(spawn.ADDRESS_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(EngineError, match="no process can be started here"):
        spawn.start("prints", [], 1)


def test_work_in_a_fork_returns_raises_and_dies_separately() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_FORK], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "['a value', False]",
        "DataError bad image",
        "EngineError a process was killed by signal 9",
        "DataError ZeroDivisionError: division by zero (<string>:10)",
        "DataError FileNotFoundError: [Errno 2] No such file or directory: "
        "'/proc/self/nothing' (<string>:7)",
        "EngineError a process ran out of memory",
        "EngineError no process can be started here: Resource temporarily unavailable 0",
    ]
    assert not done.stderr
