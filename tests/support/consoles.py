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
from fedsight.console.changes import Changes, look_at_runs
from fedsight.console.pages import Console
from fedsight.console.queue import Queue
from fedsight.console.server import Server, bound
from fedsight.console.shell import Shell
from fedsight.console.site_pages import SiteConsole, look_at_site
from fedsight.deploy.site.folder import SiteFolder


@dataclass(frozen=True)
class Answer:
    code: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Client:
    """Asks a served console; `cookie` is its session."""

    console: Any
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
def serving(console: Shell) -> Iterator[Client]:
    """Any console, served in a thread."""
    server = Server(console)
    with bound(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(console, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def served(root: Path, federation: Any = None) -> Iterator[Client]:
    """The console of the runs in `root`."""
    queue = Queue(root)
    changes = Changes(look_at_runs(root, queue.place))
    with serving(Console(Sessions(), changes, root, queue, federation)) as client:
        queue.start()
        try:
            yield client
        finally:
            queue.close()


@contextmanager
def served_site(home: Path) -> Iterator[Client]:
    """The console of the owner of a site, who is logged in."""
    changes = Changes(look_at_site(home))
    with serving(SiteConsole(Sessions(), changes, SiteFolder.open(home))) as client:
        client.enter()
        yield client
