"""Runs that operators ask for from other machines, at the server.

Such a run lies where all runs of the federation are, and a process at the server carries it from
job to job, as `fedsight run` does. The jobs are submitted where the operator is, for they are
signed with a key that stays there. The two talk through a folder, `remote/ID`, which the operator's
machine reads and writes by commands of its session (`deploy/flare/reading.py`).

What was asked for comes from another machine, and is text: it brings no plug-ins, which would be
code here, and names no files of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsight.core import locks
from fedsight.core.errors import DeployError, StoreError
from fedsight.core.files import (
    content,
    json_object,
    make_folder,
    parse_json,
    remove,
    write_atomically,
)
from fedsight.core.text import is_printable, printable
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.processes.spawn import ADDRESS_VARIABLE

PLACE = "remote"  # in a federation's folder
PROGRAM, ASKED, LOCK = "program.toml", "asked.json", ".lock"
JOB, SUBMITTED, ENDED, SAID = "job.json", "submitted.json", "ended.json", "said.txt"
CARRIER = "fedsight.cli.carrying"  # the module of the process that carries a run
MAX_PROGRAM = 64 << 10  # bytes
MAX_NAME = 255  # characters of a run's name, as of a folder's
MAX_PATIENCE = 3600.0  # seconds in which a job is submitted, whatever the program's deadline is
MAX_GOING = 4  # runs of one operator at a time
START_TIMEOUT = 120.0  # seconds in which a process that was started takes its lock
KEEP = 7 * 86400.0  # seconds for which what was said of an ended run is kept
MOST_KEPT = 100  # such runs
MOST_SAID = 32 << 10  # bytes of what was said that are sent at once
POLL_INTERVAL = 0.25  # seconds
_ID = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"[/\\]|^~|^\.\.?$")
# Both take time in proportion to the text: `++` and `*+` give nothing back.
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*+"?|\'[^\'\n]*+\'?')
_DEEP_KEY = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){9}")


@dataclass(frozen=True)
class Asked:
    """What an operator asks for."""

    operator: str
    program: str  # in TOML
    fingerprint: str  # of the program, as the operator's machine computes it
    language: str  # in which the operator is told how it goes
    resume: str = ""  # a run of this program that is to go on; empty: a new one

    @classmethod
    def of(cls, operator: str, text: str) -> Asked:
        """From JSON; DeployError unless it is safe to begin."""
        try:
            table = parse_json(text)
            found = cls(operator, **table)
            if not all(isinstance(one, str) for one in asdict(found).values()):
                raise TypeError
        except (ValueError, TypeError):
            raise DeployError("what was asked for cannot be read", "update this machine") from None
        if found.language not in ("en", "zh") or not re.fullmatch(r"\w{8,128}", found.fingerprint):
            raise DeployError("what was asked for cannot be read", "update this machine")
        if len(found.resume) > MAX_NAME or not is_printable(found.resume):
            raise DeployError("what was asked for cannot be read", "update this machine")
        check_program(found.program)
        return found


def check_program(text: str) -> None:
    """Raise DeployError for a program that brings code, or names files, of the machine where it is
    read; those of `[data]` are opened at the sites alone."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold
        raise DeployError("the program cannot be read", "update this machine") from None
    if size > MAX_PROGRAM:
        cause = f"the program has more than {MAX_PROGRAM:,} bytes"
        raise DeployError(cause, "start it on the coordinator's machine: fedsight run")
    _check_costs(text)
    try:
        table = tomllib.loads(text)
        texts = [(section, *one) for section in table for one in _texts(section, table[section])]
    except (ValueError, RecursionError):
        raise DeployError("the program cannot be read", "update this machine") from None
    if "plugins" in table:
        cause = "plug-ins are code, which nobody sends to the coordinator's machine"
        raise DeployError(cause, "start this program on that machine: fedsight run")
    for section, key, value in texts:
        # A run's folder has the program's name, and those that begin with a dot have other uses.
        if section == "name" and value.startswith("."):
            cause = "the name of a run does not begin with a dot"
            raise DeployError(cause, "choose another name")
        if section != "data" and _FILE.search(value):
            raise DeployError(
                f"{key} = '{printable(value, 80)}' names a file, and files are read on the "
                "coordinator's machine",
                "start this program on that machine: fedsight run",
            )


def _check_costs(text: str) -> None:
    """Raise DeployError for keys with so many parts that reading them would take gigabytes, as
    tomllib does; a text over several lines, in which one could hide, is in no program of ours."""
    cure = "start this program on the coordinator's machine: fedsight run"
    if '"""' in text or "'''" in text:
        raise DeployError("the program has a text over several lines", cure)
    if _DEEP_KEY.search(_STRING.sub("s", text)):
        raise DeployError("the program has a key with more than 9 parts", cure)


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """All texts in a table or a list, and where they are."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield key, name
            yield from _texts(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(key, inner)


@dataclass(frozen=True)
class RemoteRun:
    """A run that an operator follows from another machine; `folder` is that of what they say."""

    folder: Path

    @property
    def federation(self) -> Path:
        """The folder of the federation."""
        return self.folder.parent.parent

    @property
    def asked(self) -> Asked:
        """What was asked for."""
        return Asked(**json_object(self.folder / ASKED))

    @property
    def operator(self) -> str:
        """Who asked for it."""
        return self.asked.operator

    @property
    def going(self) -> bool:
        """Whether a process carries it, or is about to."""
        if locks.held(self.folder / LOCK):
            return True
        begun = (self.folder / ASKED).stat().st_mtime
        return not (self.folder / ENDED).exists() and time.time() - begun < START_TIMEOUT

    @property
    def changed(self) -> float:
        """When something was written last, in seconds since 1970."""
        return self.folder.stat().st_mtime

    def exclusive(self) -> contextlib.AbstractContextManager[Any]:
        """Held by the process that carries the run."""
        busy = StoreError("another process carries this run", "wait until it ends")
        return locks.hold(self.folder / LOCK, locks.GLANCE, busy)

    def submit(
        self,
        run: str,
        sites: Sequence[str],
        arguments: Mapping[str, Any],
        patience: float,
        still: Callable[[], None],
    ) -> str:
        """Have the operator's machine submit a job; returns its ID.

        `still` is called again and again, and may raise. Raises DeployError after `patience`
        seconds, or `MAX_PATIENCE`, or if that machine could not.
        """
        patience = min(patience, MAX_PATIENCE)
        number = secrets.randbelow(1 << 50)
        job = {"number": number, "run": run, "sites": list(sites), "arguments": dict(arguments)}
        write_atomically(self.folder / JOB, json.dumps(job).encode())
        until = time.monotonic() + patience
        while (answer := json_object(self.folder / SUBMITTED)).get("number") != number:
            still()
            if time.monotonic() >= until:
                (self.folder / JOB).unlink(missing_ok=True)
                raise DeployError(
                    f"the machine of {self.operator}, whose key signs the jobs of this run, "
                    f"has not answered for {patience:.0f} s",
                    f"continue there with: fedsight operator run DIR CONFIG --resume {run}",
                )
            time.sleep(POLL_INTERVAL)
        (self.folder / JOB).unlink(missing_ok=True)
        if error := answer.get("error"):
            cause = f"the operator's machine could not submit a job: {error}"
            raise DeployError(cause, "look at what that machine printed")
        return str(answer["job"])

    def end(self, code: int) -> None:
        """The process ends with this exit code."""
        write_atomically(self.folder / ENDED, json.dumps({"code": code}).encode())


def begin(federation: FederationFolder, operator: str, text: str) -> dict[str, Any]:
    """Begin what an operator asks for; returns the ID under which it is followed."""
    asked = Asked.of(operator, text)
    if asked.resume:
        run_folder(federation, asked.resume)
    place = federation.folder / PLACE
    make_folder(place)
    place.chmod(0o700)
    busy = StoreError("another run is being started", "try again")
    with locks.hold(place / LOCK, 1.0, busy):
        known = [RemoteRun(path.parent) for path in place.glob(f"*/{ASKED}")]
        going = [one for one in known if one.going]
        if sum(one.operator == operator for one in going) >= MAX_GOING:
            cause = f"{MAX_GOING} runs that {operator} has asked for are going on"
            raise DeployError(cause, "wait until one has ended, or stop one")
        over = sorted((one for one in known if one not in going), key=lambda one: one.changed)
        for at, one in enumerate(over):
            if at < len(over) - MOST_KEPT or time.time() - one.changed > KEEP:
                remove(one.folder)
        found = RemoteRun(place / secrets.token_hex(8))
        make_folder(found.folder)
        write_atomically(found.folder / PROGRAM, asked.program.encode())
        write_atomically(found.folder / ASKED, json.dumps(asdict(asked)).encode())
        _start(found)
    what = "resume" if asked.resume else "run"
    program = asked.fingerprint[:16]
    federation.log_event("asked", what=what, run=asked.resume, program=program, operator=operator)
    return {"id": found.folder.name}


def run_folder(federation: FederationFolder, name: str) -> Path:
    """The folder of a run that is to go on; StoreError if the federation has no such run."""
    known = {path.parent.name: path.parent for path in federation.runs.glob("*/run.toml")}
    if name not in known:
        cure = f"its runs are: {', '.join(sorted(known)) or 'none yet'}"
        raise StoreError(f"the federation has no run '{name}'", cure)
    return known[name]


def seen(federation: FederationFolder, operator: str, id: str, offset: str) -> dict[str, Any]:
    """What was said since `offset`, which job is to be submitted, and how it ended if it has."""
    found = _of(federation, operator, id)
    ended = json_object(found.folder / ENDED).get("code")
    code = 1 if ended is None and not found.going else ended
    try:
        said = content(found.folder / SAID)[max(0, int(offset)) :][:MOST_SAID]
    except (OSError, ValueError):
        said = b""
    return {
        "said": said.decode("utf-8", "replace"),
        "next": max(0, int(offset)) + len(said),
        "job": (json_object(found.folder / JOB) or None) if code is None else None,
        "code": code,
    }


def submitted(federation: FederationFolder, operator: str, id: str, text: str) -> dict[str, Any]:
    """Take what became of a job that was to be submitted."""
    found, table = _of(federation, operator, id), parse_json(text)
    fits = (
        isinstance(table, dict)
        and type(table.get("number")) is int
        and isinstance(table.get("job", ""), str)
        and isinstance(table.get("error", ""), str)
        and ("job" in table) != ("error" in table)
    )
    if not fits or not _is_id(table.get("job")):
        raise DeployError("what was answered cannot be read", "update this machine")
    write_atomically(found.folder / SUBMITTED, json.dumps(table).encode())
    return {}


def _is_id(job: str | None) -> bool:
    """Whether a job's ID is one as FLARE makes them, or there is none."""
    try:
        return job is None or str(uuid.UUID(job)) == job
    except ValueError:
        return False


def _of(federation: FederationFolder, operator: str, id: str) -> RemoteRun:
    found = RemoteRun(federation.folder / PLACE / id)
    if not _ID.fullmatch(id) or json_object(found.folder / ASKED).get("operator") != operator:
        raise DeployError("you have asked for no such run", "see: fedsight operator history DIR")
    return found


def _start(found: RemoteRun) -> None:
    """Start the process that carries a run; it goes on when this one ends."""
    own = ("FEDSIGHT_OPERATOR", ADDRESS_VARIABLE)
    environment = {key: value for key, value in os.environ.items() if key not in own}
    with (found.folder / SAID).open("wb") as said:
        process = subprocess.Popen(
            # Safe path: else a module in the working folder would be taken for one of ours.
            [sys.executable, "-P", "-m", CARRIER, str(found.folder)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie
