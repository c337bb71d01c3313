"""Ten thousand requests from somebody who may not use the console, to a console that runs.

They have no token, guess one, come from pages elsewhere with the user's cookie, or under another
name; their paths lead out of the folder in every encoding, their names are HTML, their heads and
bodies are too large; hundreds of connections say nothing, or something slowly. None is to get
anything or to break anything, and whoever may use the console still does, in a process that stays
as small as it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import SplitResult, urlencode, urlsplit

import psutil
from console_attack import SCRIPT, Attack, Target
from processes import python_path

from fedsight.console import server
from fedsight.coordinator.asked import asked
from fedsight.coordinator.folders import LOCK
from fedsight.core import locks
from fedsight.core.errors import StoreError

HERE = Path(__file__).parents[1] / "support"
OURS = ("-m", "fedsight")
WEAK = (str(HERE / "weak_console.py"),)
INSIDE, OUTSIDE = "a run of this ward", "of another ward"
# Connections that have just come, that are being counted and that are being closed; a few files.
MOST_FILES = server.MOST_CONNECTIONS + 3 * server.MOST_AT_ONCE + 40
FEW_MIB = 24.0


def make_run(folder: Path, name: str) -> None:
    """A run folder as a run writes it, with a name that its page shows."""
    folder.mkdir(parents=True)
    site = {"name": "site-00", "samples": 8, "labels": [4, 4]}
    told = {
        "name": "made", "created": "2026-01-02T03:04:05+00:00", "rounds": 4, "population": 1,
        "headline": "Accuracy", "algorithm": f"{name} {SCRIPT}", "classes": ["a", "b"],
        "sites": [site],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(told))
    (folder / "run.toml").write_text('name = "made"\n')
    line = {
        "round": 1, "score": 0.5, "loss": 1.0, "measured_on": "test part", "rejected": {},
        "bytes_up": 10, "bytes_down": 20, "seconds": 1.0, "sites": [],
    }  # fmt: skip
    (folder / "history.jsonl").write_text(json.dumps(line) + "\n")


@contextmanager
def running(words: Sequence[str], root: Path) -> Iterator[Target]:
    """A console in a process of its own, with somebody who is logged in."""
    first, other = root / "runs" / "first", root / "outside"
    make_run(first, INSIDE)
    make_run(other, OUTSIDE)
    (root / "secret.txt").write_text(OUTSIDE)
    held = locks.hold(first / LOCK, locks.GLANCE, StoreError("the run goes on", ""))
    command = [sys.executable, *words, "console", "--port", "0", "--runs", str(root / "runs")]
    environment = {"PYTHONPATH": python_path(HERE), "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with held, subprocess.Popen(command, env=environment, text=True, **streams) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().rpartition(" ")[2].strip())
            assert address.port is not None
            secrets = (INSIDE.encode(), OUTSIDE.encode(), b"root:x:0:0")
            base, cookie = address.path.removesuffix("/session"), entered(address)
            yield Target(address.port, base, cookie, psutil.Process(process.pid), secrets)
        finally:
            process.terminate()


def entered(address: SplitResult) -> str:
    """The cookie of a new session, for who has the address with the token."""
    connection = HTTPConnection(address.netloc, timeout=60)
    headers = {"origin": f"http://{address.netloc}"}
    connection.request("POST", address.path, urlencode({"token": address.fragment}), headers)
    cookie = connection.getresponse().getheader("set-cookie") or ""
    connection.close()
    return cookie.partition(";")[0]


def test_a_console_without_checks_and_limits_gives_in(tmp_path: Path) -> None:
    with running(WEAK, tmp_path) as target:
        found = Attack(target, 1000, mebibytes=8).run(patience=5)
        assert asked(tmp_path / "runs" / "first") in ("pause", "stop")  # by a page from elsewhere
    told = "\n".join(found.got)
    assert "/run/first " in told  # without a session
    assert "/run/../outside " in told
    assert "/run/..%2foutside " in told
    assert found.failed
    assert found.raw
    assert found.files > MOST_FILES
    assert found.grown > FEW_MIB


def test_ours_gives_nothing_and_goes_on(tmp_path: Path) -> None:
    with running(OURS, tmp_path) as target:
        found = Attack(target, 10_000, mebibytes=8).run(patience=60)
        assert asked(tmp_path / "runs" / "first") is None
    assert found.requests >= 10_000
    assert found.got == []
    assert found.failed == []
    assert not found.raw
    assert found.turned_away == 0
    assert found.welcome > 10
    assert found.files <= MOST_FILES
    assert found.grown <= FEW_MIB
