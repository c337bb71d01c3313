"""Who may use the console: whoever has a token for it, from a page of its own, under its own name.

Everything else on this machine can reach the port, and so can every page that the user's browser
shows. So a request needs a cookie that only a token gives; whatever changes something has to come
from a page of this console (its `Origin`), and from somebody with the right to it; and the name
under which the browser found the console has to be one of its own, or a page from elsewhere could
give its name a new address and read everything (DNS rebinding). What a proxy says about a request
is not believed. A browser sends a cookie to all ports of a machine, so another user's server on
this one could collect it; the cookie is therefore for one path alone, which begins with a secret of
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedsight.console.door import Door
from fedsight.console.rights import Right
from fedsight.console.sessions import Holder, Sessions

HOLDER = "holder"  # in the state of a request: who is logged in; None: nobody
SECRET = "secret"  # in the same: of the session
OPEN = ("/session", "/static/")  # what can be had without a session: the way in, and its looks
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


class Guard:
    """Lets through what may pass, and puts the headers of safety on every answer."""

    def __init__(
        self, app: ASGIApp, sessions: Sessions, door: Door, needed: Callable[[str], Right]
    ) -> None:
        """`needed`: the right that whatever changes something at a place takes."""
        self._app, self._sessions, self._door, self._needed = app, sessions, door, needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        secret = cookie(headers, self._door.cookie)
        holder = self._sessions.who(secret)
        scope.setdefault("state", {}).update({HOLDER: holder, SECRET: secret})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
                told.setdefault("Content-Security-Policy", POLICY)
            await send(message)

        if why := self._refusal(scope, headers, holder):
            await why(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers, holder: Holder | None) -> Response | None:
        """The answer to a request that is refused; None if it is not."""
        host, path, base = headers.get("host", ""), scope["path"], self._sessions.base
        if not self._door.is_named(host):
            return _plain(
                "this is not a name of the console: use the address that it printed when it "
                "started; a proxy has to leave the header Host as it is",
                403,
            )
        if not path.startswith(f"{base}/"):
            return _plain("open the address that the console printed when it started", 404)
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and not self._door.is_own(headers.get("origin"), host):
            return _plain("this request does not come from a page of the console", 403)
        place = path.removeprefix(base)
        if place == OPEN[0] or place.startswith(OPEN[1]):
            return None
        if holder is not None:
            if changes and holder.right < self._needed(place):
                return _plain("your token does not permit this", 403)
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
