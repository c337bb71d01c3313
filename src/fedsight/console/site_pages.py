"""The console of a site's owner: what left, what is asked, what waits for a decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fedsight.console import site_view
from fedsight.console.changes import Look, Signature, stamp
from fedsight.console.shell import Shell, told
from fedsight.console.site_view import LedgerReader
from fedsight.core.errors import FedSightError
from fedsight.deploy.findings import contract_in_force
from fedsight.deploy.membership import presence
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site import approvals, state
from fedsight.deploy.site.approvals import FACTS, iso
from fedsight.deploy.site.delivery.listing import as_list
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.ledger_view import sentence
from fedsight.language.message import Text, message
from fedsight.report.sites import kind_words


@dataclass(frozen=True)
class SiteConsole(Shell):
    """What the pages show: the folder of a site."""

    site: SiteFolder

    @cached_property
    def reader(self) -> LedgerReader:
        """The site's ledger."""
        return LedgerReader(self.home)

    @property
    def home(self) -> Path:
        """The site's folder."""
        return self.site.folder

    @property
    def menu(self) -> Sequence[tuple[str, Text]]:
        """The pages."""
        return [
            ("/", message("Now")),
            ("/programs", message("Programs")),
            ("/left", message("What left")),
            ("/ledger", message("Ledger")),
            ("/contract", message("Contract")),
            ("/recognisers", message("Recognisers")),
            ("/health", message("Health")),
        ]

    def routes(self) -> Iterable[BaseRoute]:
        """The pages of a site, and what its owner can do."""
        return [
            Route("/", told(now_page)),
            Route("/programs", told(programs_page)),
            Route("/program/{fingerprint}", told(program_page)),
            Route("/program/{fingerprint}/{what}", told(decide), methods=["POST"]),
            Route("/left", told(left_page)),
            Route("/ledger", told(ledger_page)),
            Route("/contract", told(contract_page)),
            Route("/recognisers", told(recognisers_page)),
            Route("/health", told(health_page)),
            Route("/drain/{what}", told(drain), methods=["POST"]),
        ]

    def globals(self) -> Mapping[str, Any]:
        """What settings and ledgers are said to be."""
        return {
            "sentence": sentence,
            "kind_words": kind_words,
            "view_of": site_view,
            "iso": iso,
            "facts": tuple(FACTS.items()),
        }

    def programs(self) -> tuple[site_view.Programs | None, FedSightError | None]:
        """Programs that wait and that were decided, or why that cannot be known: the ledger."""
        try:
            return site_view.programs(self.home, self.reader.ledger()), None
        except FedSightError as error:
            return None, error


def look_at_site(home: Path) -> Look:
    """What tells that a page of a site has changed, by the page."""

    def stamps(*patterns: str) -> Signature:
        paths = (path for pattern in patterns for path in sorted(home.glob(pattern)))
        return tuple(part for path in paths for part in (path.name, *stamp(path)))

    def look() -> dict[str, Signature]:
        running = supervisor.is_running(home)
        lives = (running, presence.is_answered(home), state.state_of(home) if running else "")
        decided, log = stamps("programs/*.json", "programs/decided"), stamps("log.jsonl")
        ledger, settings = stamps("ledger.head"), stamps("site.toml", "owner.toml")
        return {
            "now": (*lives, *stamps("work/*", state.DRAINED), *decided),
            "programs": (*decided, *ledger, *log),
            "left": log,
            "ledger": (*ledger, *settings),
            "contract": (running, *settings),
            "recognisers": stamps("received/*/*.json"),
            "health": (*lives, *stamps("kit/startup/*")),
        }

    return look


def now_page(console: SiteConsole, request: Request) -> Response:
    """What the site does, what is asked of it, and what waits for its owner."""
    found, error = console.programs()
    return console.show(
        request, "site_now.html", now=site_view.now(console.home), programs=found, error=error
    )


def programs_page(console: SiteConsole, request: Request) -> Response:
    """Programs that wait, what was decided, and what was refused."""
    found, error = console.programs()
    refused = site_view.refused(console.home)
    asked = contract_in_force(console.home).approval
    return console.show(
        request, "site_programs.html", programs=found, error=error, refused=refused, asked=asked
    )


def program_page(console: SiteConsole, request: Request) -> Response:
    """One program: its settings, and what the owner can decide."""
    fingerprint = request.path_params["fingerprint"]
    found = approvals.request(console.home, fingerprint)
    ledger = console.reader.ledger()
    decision = None if ledger is None else ledger.decision(fingerprint)
    if found is None and decision is None:
        return console.missing(request)
    differs = None
    if found is not None and ledger is not None and decision is None:
        differs = approvals.differences(found, approvals.decided(console.home, ledger))
    return console.show(
        *(request, "site_program.html"),
        fingerprint=fingerprint,
        found=found,
        decision=decision,
        differs=differs,
    )


def decide(console: SiteConsole, request: Request) -> Response:
    """Approve or refuse a program."""
    fingerprint, what = request.path_params["fingerprint"], request.path_params["what"]
    if what not in ("approve", "refuse"):
        return console.missing(request)
    approvals.decide(console.home, fingerprint, what == "approve")
    console.reader.read_again()
    return RedirectResponse(f"{console.base}/program/{fingerprint}", 303)


def left_page(console: SiteConsole, request: Request) -> Response:
    """The newest lines of the log."""
    return console.show(request, "site_left.html", lines=site_view.left(console.home))


def ledger_page(console: SiteConsole, request: Request) -> Response:
    """What left over all runs, and what it cost."""
    try:
        spent = console.reader.spent()
        costs = console.reader.epsilons(contract_in_force(console.home))
    except FedSightError as error:
        return console.show(request, "site_ledger.html", spent=None, costs=None, error=error)
    return console.show(request, "site_ledger.html", spent=spent, costs=costs, error=None)


def contract_page(console: SiteConsole, request: Request) -> Response:
    """The settings that are in force."""
    found = site_view.settings(console.home)
    running = supervisor.is_running(console.home)
    return console.show(request, "site_contract.html", found=found, running=running)


def recognisers_page(console: SiteConsole, request: Request) -> Response:
    """The site's own recognisers."""
    return console.show(request, "site_recognisers.html", found=as_list(console.home))


def health_page(console: SiteConsole, request: Request) -> Response:
    """Whether the site can take part."""
    found = site_view.health(console.site, console.reader)
    return console.show(request, "site_health.html", found=found)


def drain(console: SiteConsole, request: Request) -> Response:
    """Drain the site, or end that."""
    what = request.path_params["what"]
    if what not in ("begin", "end"):
        return console.missing(request)
    state.drain(console.home, what == "begin")
    return RedirectResponse(f"{console.base}/", 303)
