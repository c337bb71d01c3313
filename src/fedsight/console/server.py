"""Serves the console on this machine alone."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedsight.console.access import SESSION, Guard, Sessions
from fedsight.console.changes import Changes, look_at_runs
from fedsight.console.pages import Console
from fedsight.console.queue import Queue
from fedsight.console.shell import Shell, ways_in
from fedsight.core.errors import StoreError
from fedsight.core.files import make_folder

if TYPE_CHECKING:
    from fedsight.deploy.site.folder import SiteFolder

ADDRESS = "127.0.0.1"
MOST_BYTES = 1 << 16  # of a form
LONGEST_WAIT = 2  # seconds in which listeners may end when the console does
MOST_CONNECTIONS = 256  # at a time: a process may have about a thousand open files
PATIENCE = 10.0  # seconds until a connection without a complete request is closed


def application(console: Shell) -> Starlette:
    """The console as an ASGI application."""
    routes = [*console.routes(), *ways_in(), Route("/static/{name}", static)]
    guard = Middleware(Guard, sessions=console.sessions)
    mounted: list[BaseRoute] = [Mount(console.base, routes=routes)]
    app = Starlette(routes=mounted, middleware=[guard], max_body_size=MOST_BYTES)
    app.state.console = console
    return app


def static(request: Request) -> Response:
    """A style sheet or the script."""
    found = _static().get(request.path_params["name"])
    if found is None:
        return Response("there is no such file\n", 404, media_type="text/plain")
    return Response(found[0], media_type=found[1])


def _static() -> Mapping[str, tuple[str, str]]:
    """Name -> content and type: a fixed list, so that no name leads to another file."""
    here, report = files("fedsight") / "console" / "static", files("fedsight") / "report"
    style = re.sub(r"</?style>", "", (report / "style.html").read_text(encoding="utf-8"))
    return {
        "report.css": (style, "text/css"),
        "console.css": ((here / "console.css").read_text(encoding="utf-8"), "text/css"),
        "console.js": ((here / "console.js").read_text(encoding="utf-8"), "text/javascript"),
    }


def bound(port: int) -> socket.socket:
    """A socket at `port` of this machine, 0 for any that is free; StoreError if it is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
        found.listen()  # whoever reads the address may come at once
    except OSError as error:
        found.close()
        why = error.strerror or str(error)
        raise StoreError(
            f"cannot serve the console at port {port}: {why}",
            "choose another with --port, or end what uses it; --port 0 takes one that is free",
        ) from error
    return found


class Connection(H11Protocol):
    """A connection, of which there are not any number: everybody on this machine can open some, and
    without a file left to open the console starts no run and tells nobody anything.

    Nobody else is to keep the owner out. So whoever has no session gives way to newer connections,
    the oldest first. And `PATIENCE` after it was opened, or after its last answer, a connection is
    closed, whatever part of a request has come by then; only the answer to a complete request of a
    session may take longer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room if there are too many, and wait for a request."""
        super().connection_made(transport)
        self.made = self.loop.time()
        self._waiting: asyncio.TimerHandle | None = None
        self._make_room()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for another request, which may be there already."""
        self._wait()
        super().on_response_complete()

    @property
    def entered(self) -> bool:
        """Whether its latest request is one of a session."""
        return self.scope is not None and bool(self.scope["state"].get(SESSION))

    def _make_room(self) -> None:
        held = [one for one in self.connections if not one.transport.is_closing()]
        if len(held) > MOST_CONNECTIONS:
            strangers = [one for one in held if isinstance(one, Connection) and not one.entered]
            min(strangers, key=lambda one: one.made).transport.abort()  # this one at the latest

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(PATIENCE, self._unless_asked)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _unless_asked(self) -> None:
        """Close it, unless it has asked completely, for a session, and is being answered."""
        cycle = self.cycle
        answering = cycle is not None and not cycle.more_body and not cycle.response_complete
        if not (answering and self.entered):
            self.transport.abort()


class Server(uvicorn.Server):
    """A server that lets its listeners go before it ends."""

    def __init__(self, console: Shell) -> None:
        self._changes = console.changes
        super().__init__(
            uvicorn.Config(
                application(console),
                http=Connection,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                timeout_graceful_shutdown=LONGEST_WAIT,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, once the answers in progress are complete."""
        self._changes.end()
        await super().shutdown(sockets)


def serve_on(listening: socket.socket, console: Shell, announce: Callable[[str], None]) -> None:
    """Serve a console until Ctrl-C or SIGTERM; `announce` gets its address."""
    at = listening.getsockname()[1]
    announce(f"http://{ADDRESS}:{at}{console.base}/session#{console.sessions.token}")
    Server(console).run(sockets=[listening])


def serve(root: Path, federation: Any, port: int, announce: Callable[[str], None]) -> None:
    """Serve the console for the runs in `root` until Ctrl-C or SIGTERM.

    `announce` gets its address. Raises StoreError if the port is taken, or another console serves
    the folder.
    """
    make_folder(root)
    with bound(port) as listening:
        queue = Queue(root)
        others = [queue.place] + ([federation.presences] if federation is not None else [])
        changes = Changes(look_at_runs(root, *others))
        queue.start()
        try:
            serve_on(listening, Console(Sessions(), changes, root, queue, federation), announce)
        finally:
            queue.close()


def serve_site(site: SiteFolder, port: int, announce: Callable[[str], None]) -> None:
    """Serve the console of a site's owner until Ctrl-C or SIGTERM.

    `announce` gets its address. Raises StoreError if the port is taken.
    """
    from fedsight.console.site_pages import SiteConsole, look_at_site

    with bound(port) as listening:
        changes = Changes(look_at_site(site.folder))
        serve_on(listening, SiteConsole(Sessions(), changes, site), announce)
