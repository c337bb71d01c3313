"""Someone who has a console open: a real process of it, its event stream, and pages in between."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

READY = 180.0  # seconds in which a console tells its address, on a machine with other work, too
PATIENCE = 30.0  # seconds for an answer; the stream says every 15 that it is there
EVENT = "event, and the page that it makes the browser ask for"


class ConsoleProcess:
    """A `fedsight ... console` process, the address that it printed, and a session in it."""

    def __init__(self, words: Sequence[str], place: Path) -> None:
        command = [sys.executable, "-m", "fedsight", *words, "--port", "0"]
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until `close`
        self.process = subprocess.Popen(
            command, cwd=place, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )
        try:
            self._enter(self._address())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()

    @property
    def ticks(self) -> int:
        """Clock ticks of computing so far."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        return sum(map(int, text.rpartition(")")[2].split()[11:13]))

    @property
    def private_kib(self) -> int:
        """KiB in memory that no file backs; 0 once it is gone."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    return int(line.split()[1])
        return 0

    def connection(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection(self.host, timeout=PATIENCE)

    def ask(self, connection: http.client.HTTPConnection, path: str) -> tuple[int, int]:
        """The status of an answer, and the bytes of its body."""
        connection.request("GET", self.base + path, headers=self.headers)
        answer = connection.getresponse()
        return answer.status, len(answer.read())

    def _address(self) -> str:
        until = time.monotonic() + READY
        while time.monotonic() < until and self.process.poll() is None:
            self._output.seek(0)
            for word in self._output.read().split():
                if word.startswith("http://") and "#" in word:
                    return word
            time.sleep(0.05)
        self._output.seek(0)
        raise RuntimeError(f"the console did not start: {self._output.read()[-1000:]}")

    def _enter(self, address: str) -> None:
        parts = urlsplit(address)
        self.host, self.base = parts.netloc, parts.path.removesuffix("/session")
        connection = self.connection()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode({"token": parts.fragment})
        headers = {**form, "Origin": f"http://{self.host}"}
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        answer.read()
        given = answer.getheader("Set-Cookie")
        if given is None:
            raise RuntimeError(f"the console let nobody in: {answer.status}")
        self.headers = {"Cookie": given.partition(";")[0]}
        connection.close()


@dataclass
class Visitor:
    """A browser on a console: it holds the event stream, asks for the live part of its page as the
    console's script does, and looks at one of `pages` every `pause` seconds."""

    console: ConsoleProcess
    page: str  # the one that is open
    pages: Sequence[str]
    pause: float = 1.0
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each answer, by what
    events: int = 0
    problems: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """At work in two threads while the block runs."""
        threads = [
            threading.Thread(target=self._until_over, args=(work,), daemon=True)
            for work in (self._listen, self._look)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(PATIENCE)

    def _until_over(self, work: Any) -> None:
        while not self.over.is_set():
            try:
                work()
            except (OSError, http.client.HTTPException) as error:
                if not self.over.is_set():
                    self.problems.append(f"{type(error).__name__}: {error}")
                    self.over.wait(self.pause)

    def _listen(self) -> None:
        stream, own = self.console.connection(), self.console.connection()
        with contextlib.closing(stream), contextlib.closing(own):
            stream.request("GET", f"{self.console.base}/events", headers=self.console.headers)
            answer = stream.getresponse()
            while not self.over.is_set():
                line = answer.readline()
                if not line:
                    return
                if line.startswith(b"data:"):
                    json.loads(line[5:])
                    self.events += 1
                    self._timed(own, EVENT, f"{self.page}?fragment")

    def _look(self) -> None:
        own = self.console.connection()
        with contextlib.closing(own):
            while True:
                for page in self.pages:
                    if self.over.wait(self.pause):
                        return
                    self._timed(own, page, page)

    def _timed(self, own: http.client.HTTPConnection, what: str, path: str) -> None:
        began = time.perf_counter()
        try:
            status, _ = self.console.ask(own, path)
        except http.client.RemoteDisconnected:  # it was idle for as long as the console waits
            own.close()
            began = time.perf_counter()
            status, _ = self.console.ask(own, path)
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)
        if status != 200:
            self.problems.append(f"{path}: status {status}")


def told(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds of answers."""
    last = len(values) - 1
    found = {"median": median(values), "p95": values[round(0.95 * last)], "most": values[-1]}
    return {"answers": len(values), **{key: round(1000 * v, 1) for key, v in found.items()}}
