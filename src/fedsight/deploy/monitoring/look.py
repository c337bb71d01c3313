"""What is seen of a machine at one moment, and what a server and a site have in common in it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsight.core.files import opened, parse_json
from fedsight.deploy.monitoring.metrics import Values
from fedsight.governance.contract import Contract

LEAST_ROOM = 256 << 20  # bytes of free disk below which no work should begin
MAX_READ = 4 << 20  # bytes of a file that are followed at a time
_CLAUSE = re.compile(r"\bcontract\.(\w+)")
_ROLES = {  # a part of the command line of a process: what it is
    "monitoring.process": "monitor",
    "delivery.process": "recogniser",
    "trainer_process": "trainer",
    "worker_process": "job",
    "runner_process": "job",
    "_train": "engine",
    "processes.prefork": "prefork",
}


@dataclass(frozen=True)
class Happened:
    """Something that a hook may be told, or a log line; `subject` is what it happened to."""

    event: str
    subject: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    level: str = "info"


@dataclass
class Look:
    """What is seen at one moment."""

    values: Values = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)  # why the process cannot do its work
    happened: list[Happened] = field(default_factory=list)  # since the last look

    def set(self, name: str, value: float) -> None:
        """Set a metric that has no label."""
        self.values[name] = {"": float(value)}


class Follower:
    """Reads what is added to a file of lines of JSON."""

    def __init__(self, path: Path, from_the_start: bool) -> None:
        self._path, self._at = path, 0
        if not from_the_start:
            with contextlib.suppress(OSError):  # what comes later is read from its start
                self._at = path.stat().st_size

    def new(self) -> list[dict[str, Any]]:
        """The objects on the lines that were completed since the last call."""
        try:
            with opened(self._path) as file:
                size = os.fstat(file.fileno()).st_size
                self._at = min(self._at, size)  # it was cut: what is left was read
                file.seek(self._at)
                data = file.read(MAX_READ)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole) if whole or len(data) < MAX_READ else len(data)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                found.append(parse_json(line))
        return [one for one in found if isinstance(one, dict)]


def clause_of(why: object) -> str:
    """The clause of a contract that a reason names, or `other`: no text that somebody chose."""
    named = _CLAUSE.search(str(why))
    return named[1] if named and named[1] in Contract.model_fields else "other"


def look_at_machine(look: Look, home: Path, began: float) -> None:
    """Note the disk of `home`, and the processes of the supervisor that this one belongs to."""
    look.set("start_time_seconds", began)
    free = shutil.disk_usage(home).free
    look.set("disk_free_bytes", free)
    if free < LEAST_ROOM:
        look.reasons.append("the disk is nearly full")
    look.values["memory_bytes"] = dict(_memory(os.getppid()))


def look_at_certificates(look: Look, paths: dict[str, Path]) -> dict[str, float]:
    """Note for how long the certificates are valid; returns that in seconds."""
    left: dict[str, float] = {}
    for name, path in paths.items():
        with contextlib.suppress(OSError, ValueError):
            left[name] = _seconds_left(path)
    look.values["certificate_seconds"] = dict(left)
    look.reasons += [f"the {name}'s certificate has expired" for name in left if left[name] < 0]
    return left


def certificates_near_end(
    left: dict[str, float], days: int, others: Mapping[str, int] | None = None
) -> list[Happened]:
    """The certificates that end within so many days; `others`: within how many some of them do."""
    due = {**dict.fromkeys(left, days), **(others or {})}
    near = {name: seconds for name, seconds in left.items() if seconds < due[name] * 86400}
    return [
        Happened(
            "certificate_near_end",
            name,
            {"certificate": name, "days_left": int(seconds // 86400)},
            "warning",
        )
        for name, seconds in near.items()
    ]


def count(value: object) -> int:
    """A whole number that a file should hold; 0 for anything else."""
    return value if type(value) is int and 0 <= value < 10**18 else 0


def number(value: object) -> float | None:
    """A number that a file should hold; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 10**18:
        return None
    return float(value) if math.isfinite(value) else None


def _seconds_left(path: Path) -> float:
    from cryptography import x509

    end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return (end - datetime.now(UTC)).total_seconds()


def _memory(supervisor: int) -> Counter[str]:
    """Resident bytes of a supervisor and all processes below it, by role; Linux only."""
    found: Counter[str] = Counter()
    page = os.sysconf("SC_PAGE_SIZE")
    waiting = [supervisor]
    for _ in range(10_000):
        if not waiting:
            break
        pid = waiting.pop()
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident = int((process / "statm").read_text().split()[1]) * page
            title = (process / "cmdline").read_bytes().decode(errors="replace").split()[:3]
            role = next(
                (_ROLES[part] for part in _ROLES if any(part in one for one in title)), "other"
            )
            found["supervisor" if pid == supervisor else role] += resident
            waiting += map(int, (process / "task" / str(pid) / "children").read_text().split())
    return found
