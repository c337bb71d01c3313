"""Only the newest job's process works on a run's memory; with real processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from processes import python_path, wait_until

from fedsight.core.errors import EngineError
from fedsight.core.locks import held
from fedsight.deploy.site import job_lease
from fedsight.deploy.site.job_lease import TAKEN_OVER, JobLease, NoLeaseError, claim

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
while True:  # works on the memory until the lease ends the process
    os.write(file, (token + "\\n").encode())
    time.sleep(0.002)
"""


class Jobs:
    """Processes that write their token again and again while they hold the lease."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, token: str) -> subprocess.Popen[bytes]:
        """Start a new job of the run."""
        command = [sys.executable, "-c", JOB, str(self.memory), token]
        environment = {**os.environ, "PYTHONPATH": python_path()}
        self.started[token] = subprocess.Popen(command, env=environment)
        return self.started[token]

    def wait_for_claim(self, token: str) -> None:
        """Wait until the job has claimed the lease."""
        wait_until((self.memory / f"{token}.claimed").exists)

    def wait_for_writes(self, token: str) -> None:
        """Wait until the job holds the lease."""
        wait_until(lambda: token in self.writers())

    def writers(self) -> list[str]:
        """The jobs that wrote, in order."""
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


def test_the_newest_job_gets_the_lease_and_the_older_one_ends(jobs: Jobs) -> None:
    old = jobs.start("old")
    jobs.wait_for_writes("old")
    new = jobs.start("new")
    jobs.wait_for_writes("new")
    assert old.wait() == TAKEN_OVER
    assert new.poll() is None
    assert jobs.writers() == ["old", "new"]


@pytest.mark.parametrize("seed", range(3))
def test_of_many_jobs_one_works_at_a_time_and_the_last_one_continues(jobs: Jobs, seed: int) -> None:
    draws = random.Random(seed)
    crowd = [jobs.start(f"job{number}") for number in range(6)]
    dead = draws.sample(crowd, 2)
    for process in dead:
        time.sleep(draws.uniform(0, 0.1))
        process.kill()
    for process in set(crowd) - set(dead):
        jobs.wait_for_claim(process.args[-1])  # type: ignore[index]
    last = jobs.start("last")
    jobs.wait_for_writes("last")
    for process in crowd:
        assert process.wait() in (TAKEN_OVER, REFUSED, -signal.SIGKILL)
    assert last.poll() is None
    writers = jobs.writers()
    assert writers[-1] == "last"
    assert len(writers) == len(set(writers))  # no job wrote again after another one had


def test_a_process_that_does_not_end_keeps_the_lease_until_it_does(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_lease, "TAKEOVER_TIMEOUT", 0.0)
    slow = jobs.start("slow")
    jobs.wait_for_writes("slow")
    slow.send_signal(signal.SIGSTOP)
    claim(jobs.memory, "new")
    with pytest.raises(EngineError, match="still working on this run, and does not end"):
        JobLease(jobs.memory, "new")
    slow.send_signal(signal.SIGCONT)
    assert slow.wait() == TAKEN_OVER
    JobLease(jobs.memory, "new").release()


def test_a_job_that_dies_while_waiting_leaves_the_lease_to_the_next(jobs: Jobs) -> None:
    slow = jobs.start("slow")
    jobs.wait_for_writes("slow")
    slow.send_signal(signal.SIGSTOP)
    waiting = jobs.start("waiting")
    jobs.wait_for_claim("waiting")
    waiting.kill()
    waiting.wait()
    slow.send_signal(signal.SIGCONT)
    assert slow.wait() == TAKEN_OVER  # no process holds the lease, and a token is left
    jobs.start("next")
    jobs.wait_for_writes("next")
    assert jobs.writers() == ["slow", "next"]


def test_the_lease_is_for_the_job_that_claimed_it_last(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="a newer job of this run has taken over"):
        JobLease(tmp_path, "nobody claimed it")
    claim(tmp_path, "one")
    claim(tmp_path, "two")
    with pytest.raises(EngineError, match="a newer job of this run has taken over"):
        JobLease(tmp_path, "one")
    assert not held(tmp_path / ".lock")
    mine = JobLease(tmp_path, "two")
    assert held(tmp_path / ".lock")
    mine.release()
    claim(tmp_path, "three")  # ends no process: the lease was released
    again = JobLease(tmp_path, "three")
    again.release()
    assert not held(tmp_path / ".lock")


def test_without_a_thread_that_watches_there_is_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path, "mine")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoLeaseError, match="cannot be worked on"):
            JobLease(tmp_path, "mine")
    JobLease(tmp_path, "mine").release()  # nothing is held
