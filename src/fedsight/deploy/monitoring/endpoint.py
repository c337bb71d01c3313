"""The port with `/healthz` and `/metrics`: small answers that were made before they are asked for.

A request costs nobody anything: it reads no file and takes no lock of a round. Slow clients are cut
off, and of too many the oldest: whoever connects, a health check gets its answer.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from typing import Any

from fedsight.deploy.monitoring.metrics import CONTENT_TYPE
from fedsight.deploy.monitoring.settings import is_loopback

MAX_CONNECTIONS = 64  # at a time
REQUEST_TIMEOUT = 5.0  # seconds for a request, with its answer
BACKLOG = 64
PLAIN = "text/plain; charset=utf-8"
STALE = 60.0  # seconds after which what was seen says nothing about now


class Published:
    """The newest answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics, self._reasons = b"", ["nothing was looked at yet"]
        self._when = time.monotonic()

    def publish(self, metrics: bytes, reasons: list[str]) -> None:
        """Replace them."""
        with self._lock:
            self._metrics, self._reasons = metrics, reasons
            self._when = time.monotonic()

    @property
    def metrics(self) -> bytes:
        """The text of `/metrics`."""
        with self._lock:
            return self._metrics

    @property
    def reasons(self) -> list[str]:
        """Why the process cannot do its work."""
        with self._lock:
            stale = time.monotonic() - self._when > STALE
            return (
                [*self._reasons, "nothing was looked at for a minute"] if stale else self._reasons
            )


class Endpoint(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Answers at a socket that is bound already."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, published: Published) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.published = published
        self.local = is_loopback(str(listener.getsockname()[0]))
        self._open: dict[int, tuple[Any, float]] = {}
        self._guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. If many are answered already, the oldest gives way: an answer takes
        no time, so that is one who does not ask."""
        with self._guard:
            crowd = list(self._open)[: max(0, len(self._open) - MAX_CONNECTIONS + 1)]
            oldest = [self._open.pop(one)[0] for one in crowd]
            self._open[id(request)] = request, time.monotonic()
        self._cut(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The answer was given, or cannot be."""
        with self._guard:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: cut off who takes too long."""
        now = time.monotonic()
        with self._guard:
            late = [one for one, began in self._open.values() if now - began > REQUEST_TIMEOUT]
        self._cut(late)

    def _cut(self, requests: list[Any]) -> None:
        """End connections, which ends those who wait for them."""
        for one in requests:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nobody's concern."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Two pages, to be read and nothing else."""

    server: Endpoint
    timeout = REQUEST_TIMEOUT
    server_version, sys_version = "fedsight", ""

    def do_GET(self) -> None:
        """Answer a request."""
        if self.server.local and not self._names_this_machine():
            # A page in a browser here may have its own name lead to this machine.
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"ask by the address of this machine\n")
        elif self.path == "/healthz":
            reasons = self.server.published.reasons
            code = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
            table = {"status": "failing" if reasons else "ok", "reasons": reasons}
            self._answer(code, json.dumps(table).encode() + b"\n", "application/json")
        elif self.path == "/metrics" and (text := self.server.published.metrics):
            self._answer(HTTPStatus.OK, text, CONTENT_TYPE)
        elif self.path == "/metrics":
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"nothing was looked at yet\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there are /healthz and /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the name that the library looks for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", allow="GET, HEAD")

    def _names_this_machine(self) -> bool:
        host = self.headers.get("Host", "localhost")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        return is_loopback(name)

    def _answer(
        self,
        code: HTTPStatus,
        body: bytes,
        kind: str = "text/plain; charset=utf-8",
        allow: str = "",
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if allow:
            self.send_header("Allow", allow)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: whoever asks chooses what it would say, and how often."""
