"""The pages of the console, made from the files of the runs each time that they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from fedsight.console.access import COOKIE, REPORT_POLICY, Sessions
from fedsight.console.changes import Changes
from fedsight.console.queue import Queue
from fedsight.console.starting import EXAMPLES, started
from fedsight.core.errors import FedSightError
from fedsight.language.current import LANGUAGES, Language, current_language, using
from fedsight.language.english import from_english
from fedsight.language.message import Text, message, plural
from fedsight.report import page as report
from fedsight.report import phrases, view, words
from fedsight.report.bilingual import TAGS
from fedsight.report.figures import chapter_plots
from fedsight.report.read import read
from fedsight.runs.listing import Listed, control, folders, listed, look, state_words

CHOICE = "fedsight_language"  # the cookie that holds a browser's language
YEAR = 365 * 24 * 3600  # seconds

Handler = Callable[["Console", Request], Response]


@dataclass(frozen=True)
class Console:
    """What the pages show: the runs in a folder, and the sites of a federation."""

    root: Path
    queue: Queue
    sessions: Sessions
    changes: Changes
    federation: Any = None  # a FederationFolder; None: simulations only

    @property
    def base(self) -> str:
        """The path below which all pages are."""
        return self.sessions.base

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
            state_words=state_words,
            tags=TAGS,
        )
        return environment

    def show(self, request: Request, template: str, code: int = 200, **values: Any) -> Response:
        """A page, or only its live part if the browser's script asks for that."""
        part = "fragment" in request.query_params
        values |= {"console": self, "base": self.base, "language": current_language(), "part": part}
        page = self.templates.get_template(template).render(values)
        return HTMLResponse(page.encode("utf-8", "replace"), code)

    def run(self, name: str) -> Listed | None:
        """The run of this name, which is its folder's path below that of the runs; None if there
        is none. Names are looked up, never made into paths."""
        known = {self._name(folder): folder for folder in folders(self.root)}
        return look(known[name]) if name in known else None

    def name(self, run: Listed) -> str:
        """The name of a run in addresses."""
        return self._name(run.folder)

    def _name(self, folder: Path) -> str:
        """A folder's path below that of the runs, whatever bytes it has."""
        return str(folder.relative_to(self.root)).encode("utf-8", "replace").decode()


def told(handler: Handler) -> Callable[[Request], Response]:
    """A handler in the browser's language; an error of ours becomes a page that says it."""

    def endpoint(request: Request) -> Response:
        console: Console = request.app.state.console
        with using(language_of(request)):
            try:
                return handler(console, request)
            except FedSightError as error:
                return console.show(request, "error.html", 409, error=error)

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


def runs_page(console: Console, request: Request) -> Response:
    """All runs, and what waits."""
    return console.show(request, "runs.html", runs=listed(console.root), jobs=console.queue.jobs())


def run_page(console: Console, request: Request) -> Response:
    """One run: its state, its sites in the round in progress, its curves."""
    run = console.run(request.path_params["run"])
    if run is None:
        return _missing(console, request)
    try:
        found = read(run.folder)
    except FedSightError:  # no round is complete yet, or a line is half written
        found = None
    plots = {} if found is None else chapter_plots(found, "run")
    return console.show(request, "run.html", run=run, found=found, plots=plots)


def report_page(console: Console, request: Request) -> Response:
    """The report of a run as its files are now."""
    run = console.run(request.path_params["run"])
    if run is None:
        return _missing(console, request)
    page = report.render([read(run.folder)], current_language())
    body = page.encode("utf-8", "replace")
    return Response(
        body, headers={"Content-Security-Policy": REPORT_POLICY}, media_type="text/html"
    )


def sites_page(console: Console, request: Request) -> Response:
    """The sites of the federation: connection, images, refusals."""
    if console.federation is None:
        return _missing(console, request)
    from fedsight.deploy.membership.overview import sites

    return console.show(request, "sites.html", sites=sites(console.federation))


def new_page(console: Console, request: Request) -> Response:
    """The form that starts a run."""
    return console.show(request, "new.html", examples=EXAMPLES, given={}, error=None)


async def begin(request: Request) -> Response:
    """Start a run, or say what is wrong with the form."""
    given = await _form(request)

    def act(console: Console, request: Request) -> Response:
        try:
            started(console.queue, given, console.federation)
        except FedSightError as error:
            return console.show(
                request, "new.html", 422, examples=EXAMPLES, given=given, error=error
            )
        return RedirectResponse(f"{console.base}/", 303)

    return await asyncio.to_thread(told(act), request)


def act(console: Console, request: Request) -> Response:
    """Pause, stop or resume a run."""
    run = console.run(request.path_params["run"])
    if run is None:
        return _missing(console, request)
    what = request.path_params["what"]
    if what == "resume":
        console.queue.resume(run.folder)
    elif what in ("pause", "stop"):
        control(run.folder, what)
    else:
        return _missing(console, request)
    return RedirectResponse(f"{console.base}/run/{quote(console.name(run))}", 303)


def withdraw(console: Console, request: Request) -> Response:
    """Take an entry out of the queue."""
    console.queue.withdraw(request.path_params["id"])
    return RedirectResponse(f"{console.base}/", 303)


def login_page(console: Console, request: Request) -> Response:
    """The form for the token."""
    return console.show(request, "login.html", wrong=False)


async def login(request: Request) -> Response:
    """Give the browser a session for the token."""
    token = (await _form(request)).get("token", "")
    console: Console = request.app.state.console
    secret = console.sessions.enter(token)
    if secret is None:

        def wrong(console: Console, request: Request) -> Response:
            return console.show(request, "login.html", 403, wrong=True)

        return await asyncio.to_thread(told(wrong), request)
    answer = RedirectResponse(f"{console.base}/", 303)
    answer.set_cookie(COOKIE, secret, httponly=True, samesite="strict", path=console.base)
    return answer


def choose_language(console: Console, request: Request) -> Response:
    """Keep the language that the browser's user chose, and go to the list of runs."""
    answer = RedirectResponse(f"{console.base}/", 303)
    if (language := request.path_params["language"]) in LANGUAGES:
        answer.set_cookie(CHOICE, language, max_age=YEAR, samesite="strict", path=console.base)
    return answer


async def events(request: Request) -> Response:
    """The changes, as they come."""
    console: Console = request.app.state.console
    return StreamingResponse(console.changes.events(), media_type="text/event-stream")


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a form, the last value of each; none, if it is not one of ours."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        found = parse_qs(body, max_num_fields=20)
    except ValueError:
        return {}
    return {key: values[-1] for key, values in found.items()}


def _missing(console: Console, request: Request) -> Response:
    error = FedSightError("there is no such page here", "go back to the list of runs")
    return console.show(request, "error.html", 404, error=error)
