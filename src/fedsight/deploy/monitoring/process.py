"""The process that watches a server or a site: it only reads files, so nothing waits for it.

    FEDSIGHT_MONITOR=JOB python -m fedsight.deploy.monitoring.process [SOCKET]

It is none of the processes that take part in a run. Killed, or held by a signal, it costs no round
anything; the supervisor starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from fedsight.core.errors import StoreError
from fedsight.core.files import json_object, write_atomically
from fedsight.core.text import printable_lines
from fedsight.deploy.monitoring.endpoint import Endpoint, Published
from fedsight.deploy.monitoring.hooks import Hooks
from fedsight.deploy.monitoring.job import JOB, Job
from fedsight.deploy.monitoring.lines import Lines, output
from fedsight.deploy.monitoring.look import Look, number
from fedsight.deploy.monitoring.metrics import exposition
from fedsight.deploy.monitoring.server_look import ServerLook
from fedsight.deploy.monitoring.settings import HookSettings
from fedsight.deploy.monitoring.site_look import SiteLook
from fedsight.language.english import from_english

KNOWN = "monitor.json"  # in the folder of the server or the site: what has been told
GAP = 3600.0  # seconds without a look after which the next one is like the first
NOTED = 600.0  # seconds in which it is noted once that looks were taken
INTERVAL = 2.0  # seconds between two looks, at least
SHARE = 20  # looks take at most one part in so many of the time
LONGEST = 20.0  # seconds between two looks, at most
NICE = 10
_TEXTS = {
    "run_began": "a run has begun",
    "run_ended": "a run has ended",
    "run_failed": "a run has failed",
    "round_ended": "a round is complete",
    "site_connected": "a site is connected",
    "site_left": "a site has said that it stops",
    "site_lost": "a site is lost",
    "server_answers": "the server answers",
    "server_lost": "the server does not answer",
    "budget_near_end": "the privacy budget of a data set is near its end",
    "certificate_near_end": "a certificate is near its end",
    "joined": "the site takes part in a run",
    "update": "an update has left",
    "figures": "figures have left",
    "losses": "sums for calibration have left",
    "scores": "sums for calibration have left",
    "repeated": "the same answer has left again",
    "recogniser": "the site has a new recogniser",
    "refused": "the site has refused something",
    "failed": "something has failed at the site; log.jsonl in its folder says why",
}


class Monitor:
    """Looks at a server or a site, and publishes, prints and tells what it sees."""

    def __init__(self, job: Job, published: Published) -> None:
        settings = HookSettings(**job.hooks)
        self._job, self._published = job, published
        known = json_object(job.state_folder / KNOWN)
        self._kept = json.dumps(known, sort_keys=True)
        seen, told = known.get("seen"), known.get("told")
        if time.time() - (number(known.get("at")) or 0.0) > GAP:  # what happened meanwhile is old
            seen = None
        seen, told = (one if isinstance(one, dict) else {} for one in (seen, told))
        self._lines = Lines(job.party, job.state_folder)
        self._out = output(job.log, _say, job.party, job.state_folder)
        self._hooks = Hooks(settings, job.state_folder, job.party, self._failed, _times(told))
        kind = ServerLook if job.side == "server" else SiteLook
        self._look = kind(Path(job.home), settings, job.began, seen)
        self._lasting: set[str] = set()
        self._faulty = ""

    def look(self) -> Look:
        """Look once."""
        look = self._look.look()
        look.set("up_to_date_seconds", time.time())
        look.set("healthy", not look.reasons)
        look.values["hooks_total"] = dict(self._hooks.outcomes)
        self._published.publish(exposition(self._job.side, look.values), look.reasons)
        lasting = {f"{one.event} {one.subject}" for one in look.happened}
        for one in look.happened:
            self._hooks.tell(one)
            new = f"{one.event} {one.subject}" not in self._lasting
            if self._job.log == "json" and (new or not one.event.endswith("_near_end")):
                text = _TEXTS.get(one.event, "an entry of the site's log")
                self._lines.write(one.event, one.level, text, one.facts)
        self._lasting = {key for key in lasting if "_near_end" in key}
        self._keep()
        self._faulty = ""
        return look

    def fault(self, error: Exception) -> None:
        """A look has failed: say so once, and keep the details, which may name files."""
        kind = type(error).__name__
        self._published.publish(b"", [f"monitoring has failed ({kind})"])
        if self._faulty == kind:
            return
        self._faulty = kind
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(StoreError):
            write_atomically(self._job.state_folder / "monitor.txt", text.encode(), 0o600)
        self._out.notice(
            f"monitoring has failed ({kind}); monitor.txt says where",
            event="monitor_failed",
            level="error",
        )

    def close(self) -> None:
        """End."""
        self._hooks.close()

    def _keep(self) -> None:
        at = time.time() // NOTED * NOTED + NOTED
        known = {"at": at, "seen": self._look.known, "told": self._hooks.told}
        text = json.dumps(known, sort_keys=True)
        if text != self._kept:
            with contextlib.suppress(StoreError):  # the disk is full: something is told twice
                write_atomically(self._job.state_folder / KNOWN, text.encode(), 0o600)
                self._kept = text

    def _failed(self, event: str, why: str) -> None:
        """A hook has failed: say so wherever this process speaks."""
        self._out.notice(
            f"the hook for {event} has failed: {why}", event="hook_failed", level="error"
        )


def watch(job: Job, listener: socket.socket | None) -> None:
    """Watch until SIGTERM, or until the supervisor ends."""
    over, published = threading.Event(), Published()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    monitor = Monitor(job, published)
    while not over.is_set():
        began = time.monotonic()
        try:
            monitor.look()
        except Exception as error:  # a file that nobody expected so: the rest is still worth a look
            monitor.fault(error)
        if listener is not None:  # who asks earlier waits for the first look
            endpoint = Endpoint(listener, published)
            threading.Thread(target=endpoint.serve_forever, daemon=True, name="endpoint").start()
            listener = None
        over.wait(min(max(INTERVAL, SHARE * (time.monotonic() - began)), LONGEST))
    monitor.close()


def _say(text: str) -> None:
    """Print a sentence where the supervisor prints its own."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        print(printable_lines(str(from_english(text))), flush=True)


def _times(told: dict[str, Any]) -> dict[str, float]:
    return {key: float(when) for key, when in told.items() if isinstance(when, int | float)}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    given = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    watch(Job(**json.loads(os.environ.pop(JOB))), given[0] if given else None)
