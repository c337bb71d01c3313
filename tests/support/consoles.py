"""A console that is really served, in a thread, and a client that speaks HTTP to it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fedsight.console.access import Sessions
from fedsight.console.changes import Changes
from fedsight.console.pages import Console
from fedsight.console.queue import Queue
from fedsight.console.server import Server, bound


@dataclass(frozen=True)
class Answer:
    code: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Client:
    """Asks a served console; `cookie` is its session."""

    console: Console
    port: int
    cookie: str = ""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, form: Mapping[str, str] | None = None, **headers: str
    ) -> Answer:
        """`path` is below the console's own; headers with _ for -, None leaves one out."""
        given = {"cookie": self.cookie, "origin": self.origin, **headers}
        sent = {key.replace("_", "-"): value for key, value in given.items() if value}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            body = None if form is None else urlencode(form)
            connection.request(method, self.console.base + path, body, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, form: Mapping[str, str] | None = None, **headers: str) -> Answer:
        return self.ask("POST", path, form or {}, **headers)

    def enter(self) -> Answer:
        answer = self.post("/session", {"token": self.console.sessions.token})
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer


@contextmanager
def served(root: Path, federation: Any = None) -> Iterator[Client]:
    queue = Queue(root)
    console = Console(root, queue, Sessions(), Changes(root, queue.place), federation)
    server = Server(console)
    with bound(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        queue.start()
        try:
            yield Client(console, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
            queue.close()
