"""The queue of the console: runs that wait for their turn, one process after the other.

A run is a process of its own (`fedsight run ...`), not a part of the console: it goes on when the
console ends, and is found again by its folder. What waits is in a file, for the next console. The
folder of the runs may be from somebody else, and an entry is a command: so the file is marked with
a secret of this user, and without the mark it holds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedsight.coordinator.folders import free_folder
from fedsight.core import locks
from fedsight.core.errors import Interrupted, Paused, StoreError
from fedsight.core.files import make_folder, parse_json, refuse_links, write_atomically
from fedsight.data.fetch.cache import cache
from fedsight.runs.listing import look

PLACE = ".console"  # in the folder of the runs
FILE = "queue.json"
KEY, KEY_BYTES = "console.key", 32  # in the user's own folder
POLL = 0.25  # seconds between two looks at the processes
TOLD = 4000  # characters of a process's last words that are shown
WELL = (0, Interrupted.exit_code, Paused.exit_code)  # a process ended well, or as the user asked
KEPT = 20  # entries that did not end well


@dataclass(frozen=True)
class Job:
    """One entry: the arguments of `fedsight`, and the folder of the run."""

    id: str
    arguments: tuple[str, ...]
    folder: str  # of the run, relative to that of the runs
    state: Literal["waiting", "running", "ended"] = "waiting"
    code: int | None = None  # with which the process ended
    said: str = ""  # its last words, if it did not end well


class Queue:
    """Starts what waits, `side_by_side` processes at a time."""

    def __init__(self, root: Path, side_by_side: int = 1) -> None:
        """Raises StoreError if another console serves the same folder."""
        root = root.resolve()  # what waits is started from wherever the next console is
        self._root, self._place, self._most = root, root / PLACE, side_by_side
        refuse_links(root, PLACE)
        make_folder(self._place)
        self._key = _key()
        taken = StoreError(
            f"another console serves {root}", "use that one, or give another folder with --runs"
        )
        self._held = locks.hold(self._place / ".lock", locks.GLANCE, taken)
        self._jobs = _read(self._place / FILE, self._key)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="queue", daemon=True)

    @property
    def place(self) -> Path:
        """The folder of the queue's own files."""
        return self._place

    def start(self) -> None:
        """Begin to start what waits."""
        self._thread.start()

    def close(self) -> None:
        """Start nothing more; what goes on goes on."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._held.close()

    def jobs(self) -> list[Job]:
        """The entries, the first to come first."""
        with self._lock:
            return list(self._jobs)

    def begin(self, command: Literal["run", "compare"], options: Sequence[str], name: str) -> Job:
        """Put a new run at the end of the queue; its folder is named `name`, or like it."""
        folder = free_folder(self._root, name)
        arguments = (command, "--out", str(folder), *options)
        return self._add(arguments, folder)

    def resume(self, folder: Path) -> Job:
        """Put a run that is to go on at the end of the queue; StoreError if it does go on."""
        if look(folder).state in ("running", "finished"):
            cause = f"the run in {folder} is {look(folder).state}"
            raise StoreError(cause, "only a run that has ended before its last round is resumed")
        return self._add(("resume", "--", str(folder.resolve())), folder)

    def withdraw(self, id: str) -> None:
        """Take an entry away that waits, or has ended; StoreError if it is not there any more."""
        with self._lock:
            found = next((job for job in self._jobs if job.id == id), None)
            if found is None or found.state == "running":
                cause = "this entry of the queue has begun, or is gone"
                raise StoreError(cause, "stop the run instead")
            self._jobs.remove(found)
            self._write()
        (self._place / f"{found.id}.log").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of a new run that never began
            (self._root / found.folder).rmdir()

    def _add(self, arguments: tuple[str, ...], folder: Path) -> Job:
        place = folder.resolve().relative_to(self._root)
        job = Job(secrets.token_hex(8), arguments, str(place))
        with self._lock:
            # One that has begun may have paused, and its process be about to end.
            if any(one.folder == job.folder and one.state == "waiting" for one in self._jobs):
                raise StoreError(f"{folder} is in the queue already", "wait for its turn")
            self._jobs.append(job)
            self._write()
        return job

    def _work(self) -> None:
        while not self._over.wait(POLL):
            with self._lock:
                before = list(self._jobs)
                self._jobs = [self._looked(job) for job in self._jobs]
                going = sum(job.state == "running" for job in self._jobs)
                for at, job in enumerate(self._jobs):
                    if job.state == "waiting" and going < self._most:
                        self._jobs[at] = self._started(job)
                        going += 1
                self._jobs = self._worth_keeping()
                if self._jobs != before:
                    self._write()

    def _started(self, job: Job) -> Job:
        """The entry once its process runs."""
        # Safe path: else a module in the working folder would be taken for one of ours.
        command = [sys.executable, "-P", "-m", "fedsight", *job.arguments]
        try:
            with (self._place / f"{job.id}.log").open("wb") as log:
                self._processes[job.id] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # it does not end with the console's terminal
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
        except (OSError, ValueError) as error:
            return replace(job, state="ended", code=1, said=str(error))
        return replace(job, state="running")

    def _looked(self, job: Job) -> Job:
        """The entry as it is now."""
        if job.id not in self._processes:
            # An earlier console started it: nobody will hear how its process ended.
            over = job.state == "running" and look(self._root / job.folder).state != "running"
            return replace(job, state="ended", code=0) if over else job
        if (code := self._processes[job.id].poll()) is None:
            return job
        del self._processes[job.id]
        return replace(job, state="ended", code=code, said="" if code == 0 else self._told(job))

    def _told(self, job: Job) -> str:
        try:
            text = (self._place / f"{job.id}.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return text[-TOLD:].strip()

    def _worth_keeping(self) -> list[Job]:
        """Without what ended well or as the user asked, and the oldest of the others."""
        kept = []
        for job in self._jobs:
            if job.state != "ended" or job.code not in WELL:
                kept.append(job)
            else:
                with contextlib.suppress(OSError):
                    (self._place / f"{job.id}.log").unlink(missing_ok=True)
        ended = [job for job in kept if job.state == "ended"]
        return [job for job in kept if job not in ended[:-KEPT]]

    def _write(self) -> None:
        with contextlib.suppress(StoreError):  # the disk is full: the queue is still in memory
            jobs = [asdict(job) for job in self._jobs]
            path = self._place / FILE
            table = {"jobs": jobs, "mark": _mark(jobs, path, self._key)}
            write_atomically(path, json.dumps(table, indent=1).encode())


def _read(path: Path, key: bytes) -> list[Job]:
    """The entries in a file; none if it is missing or broken, or not marked with the `key`."""
    try:
        table = parse_json(path.read_bytes())
        jobs, mark = table["jobs"], table["mark"]
        if not hmac.compare_digest(mark.encode(), _mark(jobs, path, key).encode()):
            return []
        return [_job(entry) for entry in jobs]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _mark(jobs: Sequence[Any], path: Path, key: bytes) -> str:
    """What nobody without the `key` can write beside these entries of the file `path`."""
    content = json.dumps([str(path.resolve()), jobs], sort_keys=True)
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """The secret of this user; one for this console alone if it cannot be kept."""
    path = cache() / KEY
    fresh = secrets.token_bytes(KEY_BYTES)
    with contextlib.suppress(OSError, StoreError):
        if path.is_file() and len(found := path.read_bytes()) == KEY_BYTES:
            return found
        make_folder(path.parent)
        write_atomically(path, fresh, 0o600)
    return fresh


def _job(entry: Mapping[str, Any]) -> Job:
    job = Job(**{**entry, "arguments": tuple(map(str, entry["arguments"]))})
    if not all(isinstance(value, str) for value in (job.id, job.folder, job.state, job.said)):
        raise ValueError("not an entry of a queue")
    return job
