"""One process at a time works on a run's memory, the newest job's; with real processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from fedsight.core.errors import DeployError, EngineError
from fedsight.core.locks import held
from fedsight.deploy.site import job_lease
from fedsight.deploy.site.job_lease import TAKEN_OVER, JobLease, claim

REFUSED = 3
JOB = f"""
import os, sys, time
from pathlib import Path
from fedsight.core.errors import EngineError
from fedsight.deploy.site.job_lease import JobLease, claim
memory, token = Path(sys.argv[1]), sys.argv[2]
file = os.open(memory / "writers", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
claim(memory, token)
(memory / f"{{token}}.claimed").touch()
try:
    JobLease(memory, token)
except EngineError:
    sys.exit({REFUSED})
while True:  # it works on the memory until it is ended
    os.write(file, (token + "\\n").encode())
    time.sleep(0.002)
"""


class Jobs:
    """Processes that write their token again and again while it is their turn."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, token: str) -> subprocess.Popen[bytes]:
        """A new job of the run."""
        words = [sys.executable, "-c", JOB, str(self.memory), token]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.started[token] = subprocess.Popen(words, env=environment)
        return self.started[token]

    def claimed(self, token: str) -> None:
        """Wait until it has said that it is there."""
        until((self.memory / f"{token}.claimed").exists)

    def writes(self, token: str) -> None:
        """Wait until it has its turn."""
        until(lambda: token in self.writers())

    def writers(self) -> list[str]:
        """Who wrote, one after the other."""
        path = self.memory / "writers"
        lines = path.read_text().split() if path.exists() else []
        return [token for token, _ in groupby(lines)]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    yield made
    for process in made.started.values():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_the_newest_job_gets_the_turn_and_the_older_ends(jobs: Jobs) -> None:
    old = jobs.start("old")
    jobs.writes("old")
    new = jobs.start("new")
    jobs.writes("new")
    assert old.wait() == TAKEN_OVER
    assert new.poll() is None
    assert jobs.writers() == ["old", "new"]


@pytest.mark.parametrize("seed", range(3))
def test_of_many_at_once_one_works_at_a_time_and_the_last_goes_on(jobs: Jobs, seed: int) -> None:
    draws = random.Random(seed)
    crowd = [jobs.start(f"job{number}") for number in range(6)]
    dead = draws.sample(crowd, 2)
    for process in dead:
        time.sleep(draws.uniform(0, 0.1))
        process.kill()
    for process in set(crowd) - set(dead):
        jobs.claimed(process.args[-1])  # type: ignore[index]
    last = jobs.start("last")
    jobs.writes("last")
    for process in crowd:
        assert process.wait() in (TAKEN_OVER, REFUSED, -signal.SIGKILL)
    assert last.poll() is None
    writers = jobs.writers()
    assert writers[-1] == "last"
    assert len(writers) == len(set(writers))  # nobody wrote again after another had


def test_one_that_does_not_end_keeps_its_turn_until_it_does(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_lease, "PATIENCE", 0.0)
    slow = jobs.start("slow")
    jobs.writes("slow")
    slow.send_signal(signal.SIGSTOP)
    claim(jobs.memory, "new")
    with pytest.raises(DeployError, match="still at work on this run, and does not end"):
        JobLease(jobs.memory, "new")
    slow.send_signal(signal.SIGCONT)
    assert slow.wait() == TAKEN_OVER
    JobLease(jobs.memory, "new").end()


def test_one_that_dies_before_its_turn_leaves_it_to_the_next(jobs: Jobs) -> None:
    slow = jobs.start("slow")
    jobs.writes("slow")
    slow.send_signal(signal.SIGSTOP)
    waiting = jobs.start("waiting")
    jobs.claimed("waiting")
    waiting.kill()
    waiting.wait()
    slow.send_signal(signal.SIGCONT)
    assert slow.wait() == TAKEN_OVER  # nobody has the turn, and a token is left
    jobs.start("next")
    jobs.writes("next")
    assert jobs.writers() == ["slow", "next"]


def test_a_turn_is_for_who_claimed_it_last(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="a newer job of this run has taken over"):
        JobLease(tmp_path, "nobody claimed it")
    claim(tmp_path, "one")
    claim(tmp_path, "two")
    with pytest.raises(EngineError, match="a newer job of this run has taken over"):
        JobLease(tmp_path, "one")
    assert not held(tmp_path / ".lock")
    mine = JobLease(tmp_path, "two")
    assert held(tmp_path / ".lock")
    mine.end()
    claim(tmp_path, "three")  # ends nobody: the turn was over
    again = JobLease(tmp_path, "three")
    again.end()
    assert not held(tmp_path / ".lock")
