"""What a site refused, in its log, however often it is asked.

A coordinator chooses how many requests it makes and much of the text of a refusal. So a refusal is
shortened; one that recurs in a job is written again only at its 10th, 100th, 1,000th time; a job
may fill so many lines, and all jobs of a day together so many.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

from fedsight.core.errors import StoreError
from fedsight.core.text import MAX_MESSAGE, printable
from fedsight.deploy.site.log import SiteLog

MAX_KIND = 40  # characters of a request's kind
JOB_LINES, DAY_LINES = 200, 1000
_KINDS_OF_REFUSAL = 1000  # that are told apart in a job
log = logging.getLogger(__name__)


class Refusals:
    """Writes the refusals of one job to the log of the site in `home`."""

    def __init__(self, home: Path, site_log: SiteLog) -> None:
        self._path = home / "refusals.json"
        self._log = site_log
        self._lock = threading.Lock()
        self._times: dict[tuple[str, str], int] = {}
        self._lines = 0

    def record(self, kind: str, why: str) -> None:
        """Record that a request of the kind `kind` was refused; a full disk prevents nothing."""
        what, why = printable(kind, MAX_KIND), printable(why, MAX_MESSAGE)
        with self._lock:
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
                counted = {"times": times} if times > 1 else {}
                self._log.write("refused", what=what, why=why, **counted)

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
