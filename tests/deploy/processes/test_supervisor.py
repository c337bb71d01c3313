"""Processes that are kept alive, that end with their parent, and that run once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsight.core.errors import DeployError, EngineError
from fedsight.core.locks import held, hold
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server import job
from fedsight.engines.remote import messages as line
from fedsight.privacy.secagg import messages as protocol

# Fails the first time; then it lives on, and so does a process of its session.
FRAGILE = """\
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
assert os.environ["FEDSIGHT_HOME"] == str(folder)
if not (folder / "first").exists():
    (folder / "first").touch()
    sys.exit(3)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "pids.part").write_text(f"{os.getpid()} {other.pid}")
(folder / "pids.part").rename(folder / "pids")
time.sleep(600)
"""
KEEPS = """\
import pathlib, sys
from fedsight.deploy.processes import supervisor
supervisor.PAUSE = (0.01, 0.02)
folder = pathlib.Path(sys.argv[1])
with supervisor.only_one(folder, "it"):
    supervisor.Supervisor("fragile", [str(folder)], folder, folder).run(print)
"""
# The same, in a folder of which something cannot be written at first.
FULL = """\
import os, pathlib, sys
from fedsight.deploy.processes import supervisor
supervisor.PAUSE = (0.01, 0.02)
home, broken, kind = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
fork, calls = os.fork, []
if kind == "fork":  # as the kernel does when a user has as many processes as he may
    def refuses():
        if not calls:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()
    os.fork = refuses
else:
    broken.mkdir()  # in the way of the file
def say(text):
    print(text, flush=True)
    calls.append(text)
    if len(calls) == 1 and kind != "fork":
        broken.rmdir()
    if kind == "deaf":
        raise OSError(28, "No space left on device")
supervisor.Supervisor("fragile", [str(home)], home, home).run(say)
"""
CANNOT_FORK = """\
import os, signal
from fedsight.deploy.processes import forked
def refuses():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = refuses
try:
    forked.fork()
except BlockingIOError:
    print("refused")
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
LARGEST = """\
from types import SimpleNamespace
from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.f3.streaming.blob_streamer import BlobTask
largest = CommConfigurator().get_streaming_max_blob_size()
print(largest)
BlobTask(None, SimpleNamespace(get_size=lambda: 1000), largest)
try:
    BlobTask(None, SimpleNamespace(get_size=lambda: largest + 1), largest)
except Exception as error:
    print(error)
"""
LIVES = """\
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
STARTS = """\
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "fedsight.deploy.processes.child", "lives", sys.argv[1]])
time.sleep(600)
"""


def until(true: Callable[[], bool], patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie (an orphan may find nobody to collect it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(code, *words)`: a Python process that finds the modules of `tmp_path`."""
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "lives.py").write_text(LIVES)
    begun = []
    before = [path] if (path := os.environ.get("PYTHONPATH")) else []

    def begin(code: str, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *before])},
            stdout=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_a_process_that_dies_is_started_again_and_ends_with_its_session(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    keeping = start(KEEPS, tmp_path)
    until((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(runs, pids))
    until(lambda: (tmp_path / "process.pid").exists())
    assert (tmp_path / "process.pid").read_text() == str(pids[0])
    assert held(tmp_path / ".lock")
    with (
        pytest.raises(DeployError, match=r"^it is running already, from the same folder"),
        supervisor.only_one(tmp_path, "it"),
    ):
        pass
    keeping.send_signal(signal.SIGTERM)
    output, _ = keeping.communicate(timeout=60)
    assert keeping.returncode == 0
    assert output == "its process ended with code 3; starting it again in 0 s\n"
    until(lambda: not any(map(runs, pids)))
    assert not held(tmp_path / ".lock")
    with supervisor.only_one(tmp_path, "it"):
        assert supervisor.kept(tmp_path)
    assert not supervisor.kept(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("output", "process.txt"),
        ("number", "process.pid"),
        ("deaf", "process.txt"),
        ("fork", "none"),
    ],
)
def test_a_start_that_fails_is_told_and_tried_again(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], kind: str, broken: str
) -> None:
    (tmp_path / "first").touch()
    keeping = start(FULL, tmp_path, tmp_path / broken, kind)
    number, told = tmp_path / "process.pid", tmp_path / "pids"

    def lives() -> bool:  # one that was ended again may have told its own
        files = number.is_file() and told.exists()
        return files and told.read_text().split()[0] == number.read_text()

    until(lambda: lives() or keeping.poll() is not None)
    assert keeping.poll() is None
    pids = [int(pid) for pid in told.read_text().split()]
    assert all(map(runs, pids))
    keeping.send_signal(signal.SIGTERM)
    output, _ = keeping.communicate(timeout=60)
    assert keeping.returncode == 0
    (line,) = output.splitlines()
    assert line.startswith("its process cannot be started (")
    assert line.endswith("); trying it again in 0 s")
    assert broken in line or (kind == "fork" and "Resource temporarily unavailable" in line)
    until(lambda: not any(map(runs, pids)))


def test_a_process_that_cannot_fork_is_not_deaf(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """The kernel refuses when a user has as many processes as he may, or memory is short."""
    asked = start(CANNOT_FORK)
    output, _ = asked.communicate(timeout=60)
    assert output == "refused\nset()\n"


def test_no_message_makes_room_for_more_than_ours_need() -> None:
    """Asked of the engine itself, in a process that has the environment of those it keeps."""
    asked = subprocess.run(
        [sys.executable, "-c", LARGEST],
        env={**os.environ, **supervisor.LINE},
        capture_output=True,
        text=True,
        check=True,
    )
    largest, refusal = asked.stdout.splitlines()
    assert int(largest) == 64 << 20
    assert "exceeds configured limit" in refusal
    body = max(line.PIECE, protocol.LONGEST)
    assert int(largest) >= line.LONGEST + body + (1 << 20)  # and an envelope


def test_a_process_ends_with_its_parent_however_that_ends(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = start(STARTS, tmp_path / "pid")
    until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    child = int((tmp_path / "pid").read_text())
    assert runs(child)
    parent.kill()
    until(lambda: not runs(child))


def test_a_second_coordinator_waits_and_then_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PATIENCE", 0.3)
    with (
        job.alone(tmp_path),
        pytest.raises(EngineError, match="another coordinator is at"),
        job.alone(tmp_path),
    ):
        pass
    with job.alone(tmp_path):
        pass


def test_a_second_coordinator_goes_on_when_the_first_has_ended(tmp_path: Path) -> None:
    waits, entered = threading.Event(), threading.Event()

    def second() -> None:
        waits.set()
        with job.alone(tmp_path):
            entered.set()

    with job.alone(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        waits.wait(60)
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()


def test_a_lock_refuses_with_the_given_words(tmp_path: Path) -> None:
    refusal = DeployError("taken", "wait")
    with hold(tmp_path / "x", 0, refusal), pytest.raises(DeployError) as caught:
        hold(tmp_path / "x", 0, refusal)
    assert caught.value is refusal
    hold(tmp_path / "x", 0, refusal).close()
