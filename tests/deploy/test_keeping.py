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
from fedsight.deploy import keeper, segment

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
from fedsight.deploy import keeper
keeper.PAUSE = (0.01, 0.02)
folder = pathlib.Path(sys.argv[1])
with keeper.only_one(folder, "it"):
    keeper.Keeper("fragile", [str(folder)], folder, folder).run(print)
"""
LIVES = """\
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
STARTS = """\
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "fedsight.deploy.child", "lives", sys.argv[1]])
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

    def begin(code: str, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
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
    assert (tmp_path / "process.pid").read_text() == str(pids[0])
    assert held(tmp_path / ".lock")
    with (
        pytest.raises(DeployError, match=r"^it is running already, from the same folder"),
        keeper.only_one(tmp_path, "it"),
    ):
        pass
    keeping.send_signal(signal.SIGTERM)
    output, _ = keeping.communicate(timeout=60)
    assert keeping.returncode == 0
    assert output == "its process ended with code 3; starting it again in 0 s\n"
    until(lambda: not any(map(runs, pids)))
    assert not held(tmp_path / ".lock")
    with keeper.only_one(tmp_path, "it"):
        assert keeper.kept(tmp_path)
    assert not keeper.kept(tmp_path / "nowhere")


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
    monkeypatch.setattr(segment, "PATIENCE", 0.3)
    with (
        segment.alone(tmp_path),
        pytest.raises(EngineError, match="another coordinator is at"),
        segment.alone(tmp_path),
    ):
        pass
    with segment.alone(tmp_path):
        pass


def test_a_second_coordinator_goes_on_when_the_first_has_ended(tmp_path: Path) -> None:
    waits, entered = threading.Event(), threading.Event()

    def second() -> None:
        waits.set()
        with segment.alone(tmp_path):
            entered.set()

    with segment.alone(tmp_path):
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
