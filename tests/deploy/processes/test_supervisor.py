"""Supervised processes: restarted when they die, ended with their parent, run only once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import is_running, python_path, wait_until

from fedsight.core.errors import DeployError, EngineError
from fedsight.core.locks import held, hold
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server import job
from fedsight.engines.remote import messages
from fedsight.privacy.secagg import messages as secagg_messages

# Fails the first time; then it runs on, and so does a process that it starts in its session.
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
SUPERVISE = """\
import pathlib, sys
from fedsight.deploy.processes import supervisor
supervisor.RESTART_DELAYS = (0.01, 0.02)
folder = pathlib.Path(sys.argv[1])
with supervisor.exclusive(folder, "it"):
    with supervisor.Supervisor("fragile", [str(folder)], folder, folder) as made:
        made.run(print)
"""
# The same, but the first start fails.
FAILING_START = """\
import os, pathlib, sys
from fedsight.deploy.processes import supervisor
supervisor.RESTART_DELAYS = (0.01, 0.02)
home, broken, kind = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
fork, calls = os.fork, []
if kind == "fork":  # as if the user's limit of processes were reached
    def refuses():
        if not calls:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()
    os.fork = refuses
else:
    broken.mkdir()  # in place of the file
def notify(text):
    print(text, flush=True)
    calls.append(text)
    if len(calls) == 1 and kind != "fork":
        broken.rmdir()
    if kind == "notify":
        raise OSError(28, "No space left on device")
with supervisor.Supervisor("fragile", [str(home)], home, home) as made:
    made.run(notify)
"""
CANNOT_FORK = """\
import os, signal
from fedsight.deploy.processes import prefork
def refuses():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = refuses
try:
    prefork.fork()
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
SLEEPS = """\
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
STARTS = """\
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "fedsight.deploy.processes.spawn", "sleeps", sys.argv[1]])
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(code, *arguments)`: a Python process that finds the modules in `tmp_path`."""
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    started = []

    def run(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": python_path(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_that_dies_is_restarted_and_ends_with_its_session(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(SUPERVISE, tmp_path)
    wait_until((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(is_running, pids))
    # Written once the restarted process runs, which may have come further by then.
    file = tmp_path / "process.pid"
    wait_until(lambda: file.exists() and file.read_text() == str(pids[0]))
    assert held(tmp_path / ".lock")
    with (
        pytest.raises(DeployError, match=r"^it is already running from the folder"),
        supervisor.exclusive(tmp_path, "it"),
    ):
        pass
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == "its process ended with code 3; restarting in 0 s\n"
    wait_until(lambda: not any(map(is_running, pids)))
    assert not held(tmp_path / ".lock")
    with supervisor.exclusive(tmp_path, "it"):
        assert supervisor.is_running(tmp_path)
    assert not supervisor.is_running(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("output", "process.txt"),
        ("number", "process.pid"),
        ("notify", "process.txt"),
        ("fork", "none"),
    ],
)
def test_a_start_that_fails_is_reported_and_retried(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], kind: str, broken: str
) -> None:
    (tmp_path / "first").touch()
    process = start(FAILING_START, tmp_path, tmp_path / broken, kind)
    recorded, pids_file = tmp_path / "process.pid", tmp_path / "pids"

    def runs() -> bool:  # an earlier process that was ended again may have written its own
        files = recorded.is_file() and pids_file.exists()
        return files and pids_file.read_text().split()[0] == recorded.read_text()

    wait_until(lambda: runs() or process.poll() is not None)
    assert process.poll() is None
    pids = [int(pid) for pid in pids_file.read_text().split()]
    assert all(map(is_running, pids))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    (line,) = output.splitlines()
    assert line.startswith("its process cannot be started (")
    assert line.endswith("); retrying in 0 s")
    assert broken in line or (kind == "fork" and "Resource temporarily unavailable" in line)
    wait_until(lambda: not any(map(is_running, pids)))


def test_a_failed_fork_leaves_signals_unblocked(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """The kernel refuses a fork at the user's limit of processes, or if memory is short."""
    process = start(CANNOT_FORK)
    output, _ = process.communicate(timeout=60)
    assert output == "refused\nset()\n"


def test_flare_allocates_no_more_than_our_largest_message_needs() -> None:
    """FLARE itself is asked, in a process with the environment of supervised ones."""
    process = subprocess.run(
        [sys.executable, "-c", LARGEST],
        env={**os.environ, **supervisor.FLARE_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    largest, refusal = process.stdout.splitlines()
    assert int(largest) == 64 << 20
    assert "exceeds configured limit" in refusal
    body = max(messages.PIECE, secagg_messages.LONGEST)
    assert int(largest) >= messages.HEADER.characters + body + (1 << 20)  # and an envelope


def test_a_process_ends_with_its_parent_however_the_parent_ends(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = start(STARTS, tmp_path / "pid")
    wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    child = int((tmp_path / "pid").read_text())
    assert is_running(child)
    parent.kill()
    wait_until(lambda: not is_running(child))


def test_a_second_coordinator_waits_and_then_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LOCK_TIMEOUT", 0.3)
    with (
        job.exclusive(tmp_path),
        pytest.raises(EngineError, match="another coordinator is working"),
        job.exclusive(tmp_path),
    ):
        pass
    with job.exclusive(tmp_path):
        pass


def test_a_second_coordinator_continues_when_the_first_has_ended(tmp_path: Path) -> None:
    started, entered = threading.Event(), threading.Event()

    def second() -> None:
        started.set()
        with job.exclusive(tmp_path):
            entered.set()

    with job.exclusive(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        started.wait(60)
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()


def test_a_lock_raises_the_given_error(tmp_path: Path) -> None:
    refusal = DeployError("taken", "wait")
    with hold(tmp_path / "x", 0, refusal), pytest.raises(DeployError) as caught:
        hold(tmp_path / "x", 0, refusal)
    assert caught.value is refusal
    hold(tmp_path / "x", 0, refusal).close()
