"""Tells a program or a web address what has happened, in a thread of its own.

Nobody waits for a hook, and whatever goes wrong with one is logged and counted. What is told goes
into a JSON object alone, never into a command line, a header or an address: a part of it is chosen
by other machines.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fedsight.core.files import trim
from fedsight.deploy.monitoring.look import Happened
from fedsight.deploy.monitoring.settings import HookSettings

Outcome = Literal["delivered", "failed", "timeout", "dropped"]
OUTPUT = "hooks.txt"  # in the folder of the server or the site: what commands print
OUTPUT_BYTES = 1 << 20
MAX_WAITING = 100  # that wait for their turn; more are dropped
REPEAT = 600.0  # seconds until the same is told of the same again: a site chooses how often it goes
LASTING = frozenset({"budget_near_end", "certificate_near_end"})  # seen at each look, once begun
LASTING_REPEAT = 86400.0  # told once a day
HOUR = 3600.0
# Told in an hour; more are dropped. Whoever coordinates chooses how often a run ends, so runs have
# fewer, and what lasts is not counted at all.
MOST, MOST_RUNS = 120, 60
KEPT_FREE = 20  # places in the queue that no run takes
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "TMPDIR")
CLOSING = 2.0  # seconds at the end for what waits
Failed = Callable[[str, str], None]  # is told the event and the reason


class Hooks:
    """The hooks of one server or site; `party` says of which, and is a part of each object."""

    def __init__(
        self,
        settings: HookSettings,
        home: Path,
        party: Mapping[str, str],
        failed: Failed,
        told: Mapping[str, float] | None = None,
    ) -> None:
        """`told`: when which was told, as `told` was before a restart."""
        self._settings, self._home, self._party, self._failed = settings, home, party, failed
        self.told = dict(told or {})
        self.outcomes: Counter[str] = Counter(
            dict.fromkeys(("delivered", "failed", "timeout", "dropped"), 0)
        )
        # when the last ones were told, of runs and of anything else
        self._recent = {True: deque[float](maxlen=MOST_RUNS), False: deque[float](maxlen=MOST)}
        self._dropped: dict[str, float] = {}  # when it was said that one was dropped
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True, name="hooks")
        if settings.wanted:
            self._thread.start()

    def tell(self, happened: Happened) -> None:
        """Have it told, unless nobody wants to know, or the same was told a short while ago."""
        if not self._settings.tells(happened.event):
            return
        key, now = f"{happened.event} {happened.subject}", time.time()
        wait = LASTING_REPEAT if happened.event in LASTING else REPEAT
        of_run = happened.event.startswith("run_")
        if not of_run and 0 <= now - self.told.get(key, -wait) < wait:
            return
        if why := self._queued(happened, of_run):
            self._drop(happened.event, "" if of_run else key, why)
            return
        self._dropped.pop(key, None)
        self.told = {k: when for k, when in self.told.items() if now - when < LASTING_REPEAT}
        if not of_run:  # what was dropped is not told: it is tried again when it is seen again
            self.told[key] = now

    def _queued(self, happened: Happened, of_run: bool) -> str:
        """Have it told after the others; returns why it cannot be."""
        recent, now = self._recent[of_run], time.monotonic()
        counted = happened.event not in LASTING
        if counted and len(recent) == recent.maxlen and now - recent[0] < HOUR:
            return f"{recent.maxlen} were told within an hour"
        when = datetime.now(UTC).isoformat(timespec="seconds")
        table = {"event": happened.event, "time": when, **self._party, **happened.facts}
        try:
            if of_run and self._waiting.qsize() >= MAX_WAITING - KEPT_FREE:
                raise queue.Full
            self._waiting.put_nowait(table)
        except queue.Full:
            return f"{self._waiting.qsize()} others wait for their turn"
        if counted:
            recent.append(now)
        return ""

    def _drop(self, event: str, key: str, why: str) -> None:
        """Count what is dropped; what lasts is seen at each look, and counts once in a while."""
        now = time.monotonic()
        if not key or now - self._dropped.get(key, -REPEAT) >= REPEAT:
            self._dropped = {k: at for k, at in self._dropped.items() if now - at < REPEAT}
            self._dropped[key] = now
            self._count(event, "dropped", why)

    def close(self) -> None:
        """Give what waits a moment."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(CLOSING)

    def _work(self) -> None:
        while (table := self._waiting.get()) is not None:
            body = json.dumps(table).encode()
            if self._settings.command:
                self._count(str(table["event"]), *self._command(self._settings.command, body))
            if self._settings.url is not None:
                self._count(str(table["event"]), *self._post(self._settings.url, body))

    def _count(self, event: str, outcome: Outcome, why: str) -> None:
        self.outcomes[outcome] += 1
        if outcome != "delivered":
            with contextlib.suppress(Exception):  # the log may not be writable; the next one counts
                self._failed(event, why)

    def _command(self, command: Sequence[str], body: bytes) -> tuple[Outcome, str]:
        """Run the command, in a session of its own, which ends with it at the latest."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        output = self._home / OUTPUT
        try:
            with contextlib.suppress(OSError):
                trim(output, OUTPUT_BYTES)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            with os.fdopen(os.open(output, flags, 0o600), "ab") as file:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    env=environment,
                    cwd=self._home,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            return "failed", f"the command cannot be started: {error}"
        try:
            process.communicate(body, self._settings.timeout)
        except subprocess.TimeoutExpired:
            return "timeout", f"the command took more than {self._settings.timeout:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has left behind
            process.wait()
        code = process.returncode
        return ("delivered", "") if code == 0 else ("failed", f"the command ended with {code}")

    def _post(self, url: str, body: bytes) -> tuple[Outcome, str]:
        """Send the object. No redirection is followed; of the answer only the code counts."""
        found = urlsplit(url)
        host, timeout = str(found.hostname), self._settings.timeout
        connection: http.client.HTTPConnection
        if found.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                host, found.port, timeout=timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, found.port, timeout=timeout)
        late = threading.Event()

        def end() -> None:
            late.set()
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

        # The connection's own timeout begins anew with every byte.
        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "fedsight"}
            target = (found.path or "/") + (f"?{found.query}" if found.query else "")
            connection.request("POST", target, body, headers)
            code = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                return "timeout", f"the web hook took more than {timeout:g} s"
            return "failed", f"the web hook failed: {error}"
        finally:
            timer.cancel()
            connection.close()
        return ("delivered", "") if 200 <= code < 300 else ("failed", f"the web hook said {code}")
