"""The pages of the console, made from the files of the runs each time that they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fedsight.console.access import HOLDER, REPORT_POLICY
from fedsight.console.queue import Queue
from fedsight.console.rights import Right
from fedsight.console.shell import Shell, form, told
from fedsight.console.starting import EXAMPLES, started
from fedsight.core.errors import FedSightError
from fedsight.language.current import current_language
from fedsight.language.message import Text, message
from fedsight.report import page as report
from fedsight.report.figures import round_plots
from fedsight.report.read import read
from fedsight.runs.listing import Listed, control, folders, listed, look, state_words


@dataclass(frozen=True)
class Console(Shell):
    """What the pages show: the runs in a folder, and the sites of a federation."""

    root: Path
    queue: Queue
    federation: Any = None  # a FederationFolder; None: simulations only

    @property
    def menu(self) -> Sequence[tuple[str, Text]]:
        """Runs, sites of a federation, and what starts a run."""
        sites = [("/sites", message("Sites"))] if self.federation is not None else []
        return [("/", message("Runs")), *sites, ("/new", message("New run"))]

    def routes(self) -> Iterable[BaseRoute]:
        """The pages of runs."""
        return [
            Route("/", told(runs_page)),
            Route("/run/{run:path}", told(run_page)),
            Route("/report/{run:path}", told(report_page)),
            Route("/do/{what}/{run:path}", told(act), methods=["POST"]),
            Route("/withdraw/{id}", told(withdraw), methods=["POST"]),
            Route("/new", told(new_page)),
            Route("/new", begin, methods=["POST"]),
            Route("/sites", told(sites_page)),
        ]

    def needed(self, place: str) -> Right:
        """To pause and to stop takes less than to start."""
        steers = place.startswith(("/do/pause/", "/do/stop/"))
        return Right.STEER if steers else super().needed(place)

    def to_see(self, place: str) -> Right:
        """The form for a new run is of use only to who may start one."""
        return Right.ALL if place == "/new" else super().to_see(place)

    def globals(self) -> Mapping[str, Any]:
        """What runs are said to be."""
        return {"state_words": state_words}

    def note(self, request: Request, what: str, run: str) -> None:
        """Keep who has done what in the history of the federation."""
        holder = getattr(request.state, HOLDER)
        if self.federation is not None:
            facts = {"what": what, "run": run, "operator": holder.name}
            self.federation.log_event("console", **facts)

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


def runs_page(console: Console, request: Request) -> Response:
    """All runs, and what waits."""
    return console.show(request, "runs.html", runs=listed(console.root), jobs=console.queue.jobs())


def run_page(console: Console, request: Request) -> Response:
    """One run: its state, its sites in the round in progress, its curves."""
    run = console.run(request.path_params["run"])
    if run is None:
        return console.missing(request)
    try:
        found = read(run.folder)
    except FedSightError:  # no round is complete yet, or a line is half written
        found = None
    plots = {} if found is None else round_plots(found, "run")
    return console.show(request, "run.html", run=run, found=found, plots=plots)


def report_page(console: Console, request: Request) -> Response:
    """The report of a run as its files are now."""
    run = console.run(request.path_params["run"])
    if run is None:
        return console.missing(request)
    page = report.render([read(run.folder)], current_language())
    body = page.encode("utf-8", "replace")
    return Response(
        body, headers={"Content-Security-Policy": REPORT_POLICY}, media_type="text/html"
    )


def sites_page(console: Console, request: Request) -> Response:
    """The sites of the federation: connection, images, refusals."""
    if console.federation is None:
        return console.missing(request)
    from fedsight.deploy.membership.overview import server_words, sites

    found = sites(console.federation)
    return console.show(request, "sites.html", sites=found, server_words=server_words)


def new_page(console: Console, request: Request) -> Response:
    """The form that starts a run."""
    return console.show(request, "new.html", examples=EXAMPLES, given={}, error=None)


async def begin(request: Request) -> Response:
    """Start a run, or say what is wrong with the form."""
    given = await form(request)

    def act(console: Console, request: Request) -> Response:
        try:
            job = started(console.queue, given, console.federation)
        except FedSightError as error:
            return console.show(
                request, "new.html", 422, examples=EXAMPLES, given=given, error=error
            )
        console.note(request, "start", job.folder)
        return RedirectResponse(f"{console.base}/", 303)

    return await asyncio.to_thread(told(act), request)


def act(console: Console, request: Request) -> Response:
    """Pause, stop or resume a run."""
    run = console.run(request.path_params["run"])
    if run is None:
        return console.missing(request)
    what = request.path_params["what"]
    if what == "resume":
        console.queue.resume(run.folder)
    elif what in ("pause", "stop"):
        control(run.folder, what)
    else:
        return console.missing(request)
    console.note(request, what, console.name(run))
    return RedirectResponse(f"{console.base}/run/{quote(console.name(run))}", 303)


def withdraw(console: Console, request: Request) -> Response:
    """Take an entry out of the queue."""
    console.queue.withdraw(request.path_params["id"])
    return RedirectResponse(f"{console.base}/", 303)
