"""Who may use the console: whoever has its token, from a page of its own, on this machine.

Everything else on this machine can reach the port, and so can every page that the user's browser
shows. So a request needs a cookie that only the token gives; whatever changes something has to
come from a page of this console (its `Origin`); and the name under which the browser found the
console has to be one of this machine's own, or a page from elsewhere could give its name a new
address and read everything (DNS rebinding). A browser sends a cookie to all ports of a machine, so
another user's server on this one could collect it; the cookie is therefore for one path alone,
which begins with a secret of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "fedsight_console"
SESSION = "session"  # in the state of a request: whether it is one of a session
OPEN = ("/session", "/static/")  # what can be had without a session: the way in, and its looks
HOSTS = ("127.0.0.1", "localhost", "::1")
MOST_SESSIONS = 64  # browsers that are logged in at once; the oldest has to log in again
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
REPORT_POLICY = (  # a report has its own style sheet inside, and no scripts
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-popups"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none at all, forms would have no Origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Sessions:
    """The token of a console, and the browsers that have shown it."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self.base = f"/{secrets.token_urlsafe(9)}"  # the path of all pages
        self._known: list[bytes] = []  # hashes, so that a dump of the memory gives no session

    def enter(self, token: str) -> str | None:
        """The secret of a new session for whoever has the token; None for another token."""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        secret = secrets.token_urlsafe(32)
        self._known = [*self._known[1 - MOST_SESSIONS :], _hash(secret)]
        return secret

    def knows(self, secret: str) -> bool:
        """Whether this is the secret of a session."""
        found = _hash(secret)
        return any([hmac.compare_digest(found, one) for one in self._known])  # noqa: C419 - all


class Guard:
    """Lets through what may pass, and puts the headers of safety on every answer."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})[SESSION] = self._sessions.knows(cookie(headers, COOKIE))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
                told.setdefault("Content-Security-Policy", POLICY)
            await send(message)

        if why := self._refusal(scope, headers):
            await why(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that is refused; None if it is not."""
        host, path, base = headers.get("host", ""), scope["path"], self._sessions.base
        if _name(host) not in HOSTS:
            return _plain(
                "this is not a name of the console: use http://127.0.0.1 and its port", 403
            )
        if not path.startswith(f"{base}/"):
            return _plain("open the address that the console printed when it started", 404)
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return _plain("this request does not come from a page of the console", 403)
        place = path.removeprefix(base)
        if place == OPEN[0] or place.startswith(OPEN[1]):
            return None
        if scope["state"][SESSION]:
            return None
        if scope["method"] == "GET" and place != "/events" and not scope["query_string"]:
            return RedirectResponse(f"{base}{OPEN[0]}", 303)
        return _plain("log in", 401)


def _plain(text: str, code: int) -> Response:
    return PlainTextResponse(f"{text}\n", code)


def cookie(headers: Headers, name: str) -> str:
    """The value of a cookie; empty if there is none, or the header is not one."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _name(host: str) -> str:
    """The name in a Host header, without the port; empty if it is not one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
