"""Serves the consoles."""

from __future__ import annotations

import asyncio
import functools
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
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

from fedsight.console.access import HOLDER, Guard
from fedsight.console.changes import Changes, look_at_runs
from fedsight.console.door import Door, Opened, Wish, open_door
from fedsight.console.handshakes import Handshake, Held
from fedsight.console.pages import Console
from fedsight.console.queue import Queue
from fedsight.console.rights import Rights, of_operators, of_token
from fedsight.console.sessions import Holder, Sessions
from fedsight.console.shell import Shell, ways_in
from fedsight.console.tokens import Known, TokenFile
from fedsight.core.errors import StoreError
from fedsight.core.files import make_folder

if TYPE_CHECKING:
    from fedsight.deploy.site.folder import SiteFolder

MOST_BYTES = 1 << 16  # of a form
LONGEST_WAIT = 2  # seconds in which listeners may end when the console does
MOST_CONNECTIONS = 256  # at a time: a process may have about a thousand open files
MOST_AT_ONCE = 64  # new ones that are accepted together, before any gives way
MOST_OF_ONE = 32  # of them with sessions of one holder, when there are too many
PATIENCE = 10.0  # seconds until a connection without a complete request is closed


def application(console: Shell, door: Door) -> Starlette:
    """The console as an ASGI application."""
    routes = [*console.routes(), *ways_in(), Route("/static/{name}", static)]
    guard = Middleware(Guard, sessions=console.sessions, door=door, needed=console.needed)
    mounted: list[BaseRoute] = [Mount(console.base, routes=routes)]
    app = Starlette(routes=mounted, middleware=[guard], max_body_size=MOST_BYTES)
    app.state.console, app.state.door = console, door
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


class Connection(H11Protocol):
    """A connection, of which there are not any number: everybody on this machine can open some, and
    without a file left to open the console starts no run and tells nobody anything.

    Nobody else is to keep the owner out. So whoever has no session gives way to newer connections,
    the oldest first; and before them, whoever has very many open gives way with their own oldest.
    And `PATIENCE` after it was opened, or after its last answer, a connection is closed, whatever
    part of a request has come by then; only the answer to a complete request of a session may take
    longer.
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
    def holder(self) -> Holder | None:
        """Whose session its latest request is one of; None if it is none."""
        found: Holder | None = None if self.scope is None else self.scope["state"].get(HOLDER)
        return found

    def _make_room(self) -> None:
        make_room(self.connections)

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
        if not (answering and self.holder):
            self.transport.abort()


def make_room(connections: Iterable[Any]) -> None:
    """Close a connection if there are too many: the oldest of the holder of most, if these are more
    than `MOST_OF_ONE`, else the oldest of somebody without a session."""
    held: list[Held] = [one for one in connections if not one.transport.is_closing()]
    if len(held) <= MOST_CONNECTIONS:
        return
    names = [None if one.holder is None else one.holder.name for one in held]
    counts = Counter(name for name in names if name is not None)
    most = next((name for name, count in counts.most_common(1) if count > MOST_OF_ONE), None)
    # The newest connection has no session yet, so that somebody without one is among them.
    giving_way = [one for one, name in zip(held, names, strict=True) if name == most]
    min(giving_way, key=lambda one: one.made).transport.abort()


class Server(uvicorn.Server):
    """A server that lets its listeners go before it ends."""

    def __init__(self, console: Shell, door: Door) -> None:
        self._changes = console.changes
        protocol: Any = Connection
        if (certificate := door.certificate) is not None:

            def protocol(**shared: Any) -> Handshake:
                held = shared["server_state"].connections
                make = functools.partial(Connection, **shared)
                return Handshake(make, held, certificate, PATIENCE, lambda: make_room(held))

        super().__init__(
            uvicorn.Config(
                application(console, door),
                http=protocol,
                backlog=MOST_AT_ONCE,
                ws="none",  # no page uses them, and they would not count as connections
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
        # Over TLS a connection is closed once the browser says so, too; nobody waits for that here.
        held: list[Any] = list(self.server_state.connections)
        for one in held:
            one.transport.abort()
        await asyncio.sleep(0.05)  # for the loop to hear that they have gone


@dataclass(frozen=True)
class Said:
    """What there is to say about a console that is served."""

    address: str  # with its own token, if that is taken
    names: Sequence[str]  # of whose tokens are taken
    fingerprint: str | None  # SHA-256 of the certificate


Announce = Callable[[Said], None]


def sessions_for(wish: Wish, file: TokenFile, rights: Rights) -> Sessions:
    """Who may use a console. Its own token, which is printed, is for this machine; from others it
    takes those on file, of which StoreError says that there are none."""
    known = Known(file, rights)
    if wish.remote and not known.names:
        cause = "nobody has a token for this console, and its own is for this machine alone"
        raise StoreError(cause, "make one first: fedsight tokens add NAME")
    return Sessions(known, own=not wish.remote)


def serve_on(opened: Opened, console: Shell, announce: Announce) -> None:
    """Serve a console until Ctrl-C or SIGTERM."""
    sessions, certificate = console.sessions, opened.door.certificate
    address = f"{opened.origin}{sessions.base}/session"
    announce(
        Said(
            f"{address}#{sessions.token}" if sessions.token else address,
            sessions.names,
            None if certificate is None else certificate.fingerprint,
        )
    )
    Server(console, opened.door).run(sockets=[opened.listening])


def serve(root: Path, federation: Any, wish: Wish, announce: Announce) -> None:
    """Serve the console for the runs in `root` until Ctrl-C or SIGTERM.

    `announce` gets its address. Raises StoreError if it cannot be served as is wished for, or
    another console serves the folder.
    """
    make_folder(root)
    file, own = TokenFile.of_runs(root), None
    rights: Rights = of_token
    if federation is not None:
        file, rights = TokenFile.within(federation.folder), of_operators(federation)
        kit = federation.server_home / "kit" / "startup"
        own = kit / "server.crt", kit / "server.key"
    sessions = sessions_for(wish, file, rights)
    with closing(open_door(wish, own)) as opened:
        queue = Queue(root)
        others = [queue.place] + ([federation.presences] if federation is not None else [])
        changes = Changes(look_at_runs(root, *others))
        queue.start()
        try:
            serve_on(opened, Console(sessions, changes, root, queue, federation), announce)
        finally:
            queue.close()


def serve_site(site: SiteFolder, wish: Wish, announce: Announce) -> None:
    """Serve the console of a site's owner until Ctrl-C or SIGTERM.

    `announce` gets its address. Raises StoreError if it cannot be served as is wished for.
    """
    from fedsight.console.site_pages import SiteConsole, look_at_site

    sessions = sessions_for(wish, TokenFile.within(site.folder), of_token)
    with closing(open_door(wish)) as opened:
        changes = Changes(look_at_site(site.folder))
        serve_on(opened, SiteConsole(sessions, changes, site), announce)
