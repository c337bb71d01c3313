"""What a site refused, in its log, however often it is asked.

A coordinator chooses how many requests it makes and much of the text of a refusal. So a refusal is
shortened; one that recurs in a job is written again only at its 10th, 100th, 1,000th time; a job
may fill so many lines, and all jobs of a day together so many. That a program was refused goes to
the ledger, too, which has bounds of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsight.core.errors import DataError, FedSightError, HeldError, StoreError
from fedsight.core.text import MAX_MESSAGE, printable
from fedsight.deploy.site.log import SiteLog

MAX_KIND = 40  # characters of a request's kind
MAX_NAME = 80  # characters of a program's name, and of what else another machine calls something
JOB_LINES, DAY_LINES = 200, 1000
HELD = "held"  # instead of the kind of a request whose program waits for the owner
_KINDS_OF_REFUSAL = 1000  # that are told apart in a job
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """For which run and program something was asked, and by whom, as far as the site knows."""

    run: str = ""
    program: str = ""  # fingerprint
    name: str = ""  # of the program
    operators: tuple[str, ...] = ()  # who signed the job

    @classmethod
    def of(cls, proposal: Mapping[str, Any], operators: tuple[str, ...]) -> Asked:
        """As a proposal states it, which was not checked."""
        table = proposal.get("program")
        name = table.get("name", "") if isinstance(table, dict) else ""
        run, program = proposal.get("run", ""), proposal.get("fingerprint", "")
        return cls(cls.short(run), cls.short(program), cls.short(name), operators)

    @staticmethod
    def short(text: object) -> str:
        """A text of another machine's choice, which may have any length, for the log."""
        return printable(str(text), MAX_NAME)


Keep = Callable[[Asked, str], None]


def _nowhere(asked: Asked, why: str) -> None:
    pass


class Refusals:
    """Writes the refusals of one job to the log of the site in `home`; those of whole programs are
    all given to `keep`, too, whatever else has filled the log."""

    def __init__(self, home: Path, site_log: SiteLog, keep: Keep = _nowhere) -> None:
        self._path = home / "refusals.json"
        self._log = site_log
        self._keep = keep
        self._lock = threading.Lock()
        self._times: dict[tuple[str, str], int] = {}
        self._lines = 0
        self._recorded: weakref.WeakSet[FedSightError] = weakref.WeakSet()

    def record_error(self, kind: str, error: FedSightError, asked: Asked) -> None:
        """Record the error that a request of the kind `kind` ended with, once: all who wait for
        some work get the same one."""
        with self._lock:
            if error in self._recorded:
                return
            self._recorded.add(error)
        what = HELD if isinstance(error, HeldError) else kind  # it is not refused
        self.record(what, error.cause, asked, isinstance(error, DataError))

    def record(
        self, kind: str, why: str, asked: Asked = Asked(), names_images: bool = False
    ) -> None:
        """Record that a request of the kind `kind` was refused; a full disk prevents nothing.
        `names_images`: the reason may name images or quote labels."""
        what, why = printable(kind, MAX_KIND), printable(why, MAX_MESSAGE)
        with self._lock:
            if what == "propose":
                with contextlib.suppress(StoreError, OSError):
                    self._keep(asked, why)
            if (what, why) not in self._times and len(self._times) >= _KINDS_OF_REFUSAL:
                what, why = "", "further kinds of refusal"
            times = self._times[what, why] = self._times.get((what, why), 0) + 1
            if not is_power_of_ten(times) or self._lines >= JOB_LINES:
                return
            with contextlib.suppress(StoreError, OSError):
                lines = self._lines_today()
                if lines >= DAY_LINES:
                    return
                self._lines += 1
                self._path.write_text(json.dumps({"day": _today(), "lines": lines + 1}))
                log.warning("%s: %s", what, why)
                counted: dict[str, Any] = {"times": times} if times > 1 else {}
                counted |= {"names_images": True} if names_images else {}
                about: dict[str, Any] = {
                    "run": asked.run,
                    "program": asked.name,
                    "fingerprint": asked.program,
                }
                about["asked_by"] = list(asked.operators)
                told = {key: value for key, value in about.items() if value}
                self._log.write("refused", what=what, why=why, **told, **counted)

    def _lines_today(self) -> int:
        """How many lines all jobs have written today."""
        try:
            table = json.loads(self._path.read_text())
            return int(table["lines"]) if table["day"] == _today() else 0
        except (OSError, ValueError, TypeError, KeyError):  # none yet, or cut by a crash
            return 0


def is_power_of_ten(number: int) -> bool:
    """Whether it is 1, 10, 100, ...: what recurs is written down only then."""
    return str(number).rstrip("0") == "1"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
