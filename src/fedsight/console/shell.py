"""What every console has: its look, its languages, the way in, and the changes as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from fedsight.console.access import HOLDER, SECRET
from fedsight.console.changes import Changes
from fedsight.console.door import Door
from fedsight.console.rights import Right
from fedsight.console.sessions import Sessions
from fedsight.core.errors import FedSightError, StoreError
from fedsight.core.text import printable, printable_lines
from fedsight.language.current import LANGUAGES, Language, current_language, using
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural
from fedsight.report import phrases, view, words
from fedsight.report.bilingual import TAGS

CHOICE = "fedsight_language"  # the cookie that holds a browser's language
YEAR = 365 * 24 * 3600  # seconds
LEAVE, LANGUAGE = "/leave", "/language/"  # places where everybody may change something: for them


@dataclass(frozen=True)
class Shell:
    """A console without its own pages: who may use it, and what listeners hear."""

    sessions: Sessions
    changes: Changes

    @property
    def base(self) -> str:
        """The path below which all pages are."""
        return self.sessions.base

    @property
    def menu(self) -> Sequence[tuple[str, Text]]:
        """Addresses and titles of the pages that the menu leads to, the first page first."""
        raise NotImplementedError

    def routes(self) -> Iterable[BaseRoute]:
        """The pages that are this console's own."""
        raise NotImplementedError

    def needed(self, place: str) -> Right:
        """The right that whatever changes something at a place takes."""
        free = place == LEAVE or place.startswith(LANGUAGE)
        return Right.LOOK if free else Right.ALL

    def to_see(self, place: str) -> Right:
        """The right without which the menu leads to no such page."""
        return Right.LOOK

    def globals(self) -> Mapping[str, Any]:
        """What else its templates know."""
        return {}

    @cached_property
    def templates(self) -> Environment:
        """The templates; those of the report have macros for figures."""
        environment = Environment(
            loader=ChoiceLoader(
                [
                    PackageLoader("fedsight", "console/templates"),
                    PackageLoader("fedsight", "report"),
                ]
            ),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: str(value) if isinstance(value, Text) else value,
        )
        environment.globals.update(
            message=message,
            plural=plural,
            words=words,
            view=view,
            known=phrases.known_phrase,
            said=from_english,
            visible=printable_lines,
            shown=printable,
            tags=TAGS,
            **self.globals(),
        )
        return environment

    def show(self, request: Request, template: str, code: int = 200, **values: Any) -> Response:
        """A page, or only its live part if the browser's script asks for that."""
        part = "fragment" in request.query_params
        values |= {"console": self, "base": self.base, "language": current_language(), "part": part}
        values["place"] = request.url.path.removeprefix(self.base)
        values["holder"] = holder = getattr(request.state, HOLDER)
        values["right"] = Right.NONE if holder is None else holder.right
        page = self.templates.get_template(template).render(values)
        return HTMLResponse(page.encode("utf-8", "replace"), code)

    def missing(self, request: Request) -> Response:
        """The answer to a request for what is not there."""
        error = FedSightError("there is no such page here", "go back to the first page")
        return self.show(request, "error.html", 404, error=error)


Handler = Callable[[Any, Request], Response]  # its first argument is the console


def ways_in() -> list[BaseRoute]:
    """The pages of every console, besides its own."""
    return [
        Route("/session", told(login_page)),
        Route("/session", login, methods=["POST"]),
        Route(f"{LANGUAGE}{{language}}", told(choose_language), methods=["POST"]),
        Route(LEAVE, leave, methods=["POST"]),
        Route("/events", events),
    ]


def told(handler: Handler) -> Callable[[Request], Response]:
    """A handler in the browser's language; an error of ours becomes a page that says it."""

    def endpoint(request: Request) -> Response:
        console: Shell = request.app.state.console
        with using(language_of(request)):
            try:
                return handler(console, request)
            except FedSightError as error:
                return console.show(request, "error.html", 409, error=error)
            except OSError as error:  # what is shown was moved or removed, or may not be read
                why = f"a file cannot be read or written: {error.strerror or error}"
                cure = "look at the folder that this console shows, and at who may read it"
                return console.show(request, "error.html", 409, error=StoreError(why, cure))

    return endpoint


def language_of(request: Request) -> Language:
    """The language that the browser chose, else the first that it accepts, else English."""
    chosen = request.cookies.get(CHOICE, "")
    accepted = request.headers.get("accept-language", "").lower().split(",")
    for one in (chosen, *accepted):
        for language in LANGUAGES:
            if one.strip().startswith(language):
                return language
    return "en"


def login_page(console: Shell, request: Request) -> Response:
    """The form for the token."""
    return console.show(request, "login.html", wrong=None)


async def login(request: Request) -> Response:
    """Give the browser a session for the token."""
    console: Shell = request.app.state.console
    door: Door = request.app.state.door
    address = "" if request.client is None else request.client.host
    attempts = console.sessions.attempts
    tries = door.proxied or attempts.may_try(address)
    token = (await form(request)).get("token", "")
    secret = console.sessions.enter(token) if tries else None
    if secret is None:
        if tries:
            attempts.wrong(address)

        def wrong(console: Shell, request: Request) -> Response:
            code, why = (403, "token") if tries else (429, "often")
            return console.show(request, "login.html", code, wrong=why)

        return await asyncio.to_thread(told(wrong), request)
    answer = RedirectResponse(f"{console.base}/", 303)
    answer.set_cookie(
        *(door.cookie, secret),
        httponly=True,
        samesite="strict",
        path=console.base,
        secure=door.secure,
    )
    return answer


async def leave(request: Request) -> Response:
    """End the browser's session."""
    console: Shell = request.app.state.console
    door: Door = request.app.state.door
    console.sessions.leave(getattr(request.state, SECRET))
    answer = RedirectResponse(f"{console.base}/session", 303)
    answer.delete_cookie(
        door.cookie, path=console.base, secure=door.secure, httponly=True, samesite="strict"
    )
    return answer


def choose_language(console: Shell, request: Request) -> Response:
    """Keep the language that the browser's user chose, and go to the first page."""
    answer = RedirectResponse(f"{console.base}/", 303)
    if (language := request.path_params["language"]) in LANGUAGES:
        secure = request.app.state.door.secure
        answer.set_cookie(
            CHOICE, language, max_age=YEAR, samesite="strict", path=console.base, secure=secure
        )
    return answer


async def events(request: Request) -> Response:
    """The changes, as they come, for as long as the session holds."""
    console: Shell = request.app.state.console
    secret = getattr(request.state, SECRET)

    def permitted() -> bool:
        return console.sessions.who(secret) is not None

    return StreamingResponse(console.changes.events(permitted), media_type="text/event-stream")


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a form, the last value of each; none, if it is not one of ours."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        found = parse_qs(body, max_num_fields=20)
    except ValueError:
        return {}
    return {key: values[-1] for key, values in found.items()}
