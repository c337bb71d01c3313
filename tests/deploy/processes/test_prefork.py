"""Processes forked by a keeper: what they get, what they leave alone, and when they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsight.core.errors import EngineError
from fedsight.deploy.processes import prefork, spawn

KEEPS = """\
import pathlib, sys
from fedsight.deploy.processes import supervisor
supervisor.PAUSE = (0.01, 0.02)
folder = pathlib.Path(sys.argv[1])
with supervisor.only_one(folder, "it"):
    supervisor.Supervisor("asks", [str(folder)], folder, folder, ["heavy"]).run(print)
"""
HEAVY = """\
import os, pathlib
with (pathlib.Path(__file__).parent / "imported").open("a") as file:
    print(os.getpid(), file=file)
"""
# The kept process: asks for others, says what came of it, and dies the first time.
ASKS = """\
import heavy, json, os, pathlib, sys, time
from fedsight.deploy.processes import spawn
folder = pathlib.Path(sys.argv[1])
if (folder / "first.json").exists():
    time.sleep(600)
with (folder / "output").open("wb") as output:
    read, write = os.pipe()
    os.write(write, b"through the pipe")
    one = spawn.begin("answers", ["a word"], output.fileno(), [read], {"SECRET": "told"})
    codes = [one.wait(), one.poll()]
    two = spawn.begin("sleeps", [], output.fileno())
    running = two.poll()
    two.kill()
    codes += [running, two.wait()]
    unknown = spawn.begin("not_there", [], output.fileno()).wait()
    three = spawn.begin("sleeps", [str(folder / "awake")], output.fileno())
    while not (folder / "awake").exists():
        time.sleep(0.02)
    files = [os.readlink(path) for path in pathlib.Path(f"/proc/{three.pid}/fd").iterdir()]
    title = pathlib.Path(f"/proc/{three.pid}/cmdline").read_text()
found = {"title": title, "codes": codes, "unknown": unknown, "pid": three.pid, "files": files}
(folder / "part").write_text(json.dumps(found))
(folder / "part").rename(folder / "first.json")
os._exit(3)
"""
ANSWERS = """\
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
ASIDE = """\
import os, signal
from fedsight.core.errors import DataError, FedSightError
from fedsight.deploy.processes.prefork import aside
own = os.getpid()
def refuses(): raise DataError("bad image", "leave it out")
def dies(): os.kill(os.getpid(), signal.SIGKILL)
def cannot_read(): open("/proc/self/nothing")
def lacks_memory(): raise MemoryError
print(aside(lambda: ["a value", os.getpid() == own]), flush=True)
for work in (refuses, dies, lambda: 1 / 0, cannot_read, lacks_memory):
    try:
        aside(work)
    except FedSightError as error:
        print(type(error).__name__, error.cause, flush=True)
def no_more(): raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork, before = no_more, len(os.listdir("/dev/fd"))
try:
    aside(refuses)
except FedSightError as error:
    print(type(error).__name__, error.cause, len(os.listdir("/dev/fd")) - before, flush=True)
"""


def until(true: Callable[[], bool], patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def searched(folder: Path) -> str:
    """Where modules are looked for: in `folder`, too."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A keeper at work, and what its process said before it died and was started again."""
    folder = tmp_path_factory.mktemp("kept")
    modules = {"heavy": HEAVY, "asks": ASKS, "answers": ANSWERS, "sleeps": SLEEPS}
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": searched(folder)}
    words = [sys.executable, "-c", KEEPS, str(folder)]
    keeper = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        until((folder / "first.json").exists)
        assert keeper.stdout is not None
        assert "ended with code 3" in keeper.stdout.readline()
        yield folder, json.loads((folder / "first.json").read_text())
    finally:
        keeper.terminate()
        keeper.communicate()
    until(lambda: gone(int((folder / "process.pid").read_text())))


def test_a_process_gets_words_environment_descriptors_and_tells_its_code(
    kept: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = kept
    first = (folder / "output").read_text().splitlines()[0]
    assert "answers.py', 'a word', '" in first
    assert first.endswith("'] told through the pipe")
    assert found["codes"] == [7, 7, None, -signal.SIGKILL]


def test_a_module_that_fails_says_why(kept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = kept
    assert found["unknown"] == 1
    assert "No module named not_there" in (folder / "output").read_text()


def test_a_process_is_listed_as_what_it_runs(kept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = kept
    assert found["title"].startswith(f"fedsight: sleeps {folder}/awake")


def test_what_is_needed_is_imported_once_for_all(kept: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = kept
    assert len((folder / "imported").read_text().splitlines()) == 1


def test_a_process_ends_with_the_one_that_asked_for_it(kept: tuple[Path, dict[str, Any]]) -> None:
    until(lambda: gone(kept[1]["pid"]))


def test_a_process_holds_nothing_that_the_keeper_has_open(
    kept: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = kept
    files = [name for name in found["files"] if not name.startswith("/proc/")]
    assert sorted(files) == sorted(["/dev/null", *[str(folder / "output")] * 2])


def test_without_a_keeper_a_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(spawn.ADDRESS)
    with (tmp_path / "output").open("wb") as output:
        environment = {"PYTHONPATH": searched(tmp_path), "SECRET": "told"}
        (tmp_path / "heavy.py").touch()
        (tmp_path / "answers.py").write_text(ANSWERS)
        read, write = os.pipe()
        os.write(write, b"through the pipe")
        process = spawn.begin("answers", ["a word"], output.fileno(), [read], environment)
        assert process.wait() == 7
    os.close(read)
    os.close(write)
    assert "'a word'" in (tmp_path / "output").read_text()


def test_a_program_that_takes_its_time_to_end_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(spawn.ADDRESS)
    code = """\
import builtins, time
class Late:
    def __del__(self, now=time.monotonic):  # the last thing that an interpreter does
        end = now() + 1.2
        while now() < end:
            pass
builtins.late = Late()
"""
    (tmp_path / "late.py").write_text(code)
    with (tmp_path / "output").open("wb") as output:
        ended = spawn.begin(
            "late", [], output.fileno(), environment={"PYTHONPATH": searched(tmp_path)}
        )
        assert ended.wait() == 0


def test_a_process_that_has_threads_forks_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "sleeps.py").write_text("import heavy\n" + SLEEPS)
    monkeypatch.setenv("PYTHONPATH", searched(tmp_path))
    before = os.environ[spawn.ADDRESS]
    with (tmp_path / "output").open("wb") as output, prefork.apart(["heavy"]):
        assert os.environ[spawn.ADDRESS] != before
        first, second = (spawn.begin("sleeps", [], output.fileno()) for _ in range(2))
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(0.1)
        first.terminate()
        assert first.wait() == -signal.SIGTERM
        assert first.poll() == -signal.SIGTERM
        assert second.poll() is None
    assert os.environ[spawn.ADDRESS] == before
    assert second.wait() == -signal.SIGKILL
    assert len((tmp_path / "imported").read_text().splitlines()) == 1


def test_a_request_that_is_nonsense_or_broken_off_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefork, "MOST_LETTERS", 0)  # as if the folder's name were too long
    with (tmp_path / "output").open("wb") as output, prefork.apart(["json"]):
        for said in (b"", b"\1", b"\xff\xff\xff\xff", b"\2\0\0\0{}", b"\2\0\0\0[]", b"\x09\0\0\0"):
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(os.environ[spawn.ADDRESS])
                line.sendall(said)
        with pytest.raises(EngineError, match="no process can be started here"):
            spawn.begin("json.tool", [], 999)  # no such descriptor
        assert spawn.begin("json.tool", ["--help"], output.fileno()).wait() == 0
    assert b"usage" in (tmp_path / "output").read_bytes()


def test_a_keeper_that_cannot_begin_is_told() -> None:
    with (
        prefork.apart(["not_there"]),
        pytest.raises(EngineError, match="no process can be started"),
    ):
        spawn.begin("json.tool", [], 1)


def test_a_keeper_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(spawn.ADDRESS, str(tmp_path / "gone"))
    with pytest.raises(EngineError, match="no process can be started here"):
        spawn.begin("answers", [], 1)


def test_work_aside_returns_raises_and_dies_apart() -> None:
    code = ASIDE
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
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
