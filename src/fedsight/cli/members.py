"""Tables of a federation: its sites, its history, a run's rounds, and what left a site."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedsight.cli.renewal import warnings
from fedsight.cli.screen import share
from fedsight.cli.tables import make_table, print_line, show
from fedsight.core.disk import is_full
from fedsight.core.package import installed, started_with
from fedsight.deploy.membership import hosts
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.overview import SiteRow, server_words, sites
from fedsight.deploy.membership.renewal import endings
from fedsight.deploy.processes import supervisor
from fedsight.deploy.site.log import details, protections
from fedsight.governance.entries import SUMS
from fedsight.language.english import from_english
from fedsight.language.message import Text, message
from fedsight.runs.listing import Listed, state_words
from fedsight.runs.progress import size


def show_status(federation: FederationFolder) -> None:
    """Print the server's state, and a line for each site."""
    home, invitation = federation.server_home, federation.invitation
    state = server_words(supervisor.state(home), supervisor.process_id(home))
    address = hosts.written(invitation.host, invitation.port)
    print_line(
        message(
            "Federation '{name}' at {address}; {state}",
            name=federation.name,
            address=address,
            state=state,
        )
    )
    if is_full(home):
        print_line(
            message(
                "The disk of this folder is full, so the server can write nothing down: free some "
                "space."
            )
        )
    _show_other_server(home)
    for text in warnings(endings(federation)):
        print_line(text)
    show_sites(sites(federation).rows)


def _show_other_server(home: Path) -> None:
    """Say if the server in `home` runs other code than this machine has."""
    other = started_with(home)
    if other is not None and supervisor.is_running(home):
        print_line(
            message(
                "The server was started with FedSight {other}, and this machine has {ours}: start "
                "the server again.",
                other=str(other),
                ours=str(installed()),
            )
        )


def show_sites(rows: Sequence[SiteRow]) -> None:
    """Print a line for each site, and which run other code than this machine."""
    if not rows:
        print_line(message("No site has been admitted yet."))
        return
    table = make_table(
        *("site", "connection", "version", "source", "train", "test", "classes", "corrupt"),
        "revoked",
        right=("train", "test", "classes", "corrupt"),
    )
    for row in rows:
        counts = map(_count, (row.train, row.test, row.classes, row.skipped))
        table.add_row(
            escape(row.name),
            _connection(row),
            f"[red]{escape(row.package)}[/]" if row.other else escape(row.package.split(" ")[0]),
            escape(row.source[:40]),
            *counts,
            escape(row.revoked),
        )
    show(table)
    if others := [row.name for row in rows if row.other]:
        print_line(
            message(
                "Not the FedSight of this machine ({ours}), so they can take part in no run: "
                "{names}",
                ours=str(installed()),
                names=escape(", ".join(others)),
            )
        )


def show_history(found: Mapping[str, Any]) -> None:
    """Print events and runs, as `views.history_table` has them, newest last."""
    events = make_table("time", "event", "details", whole=("time", "event"))
    for line in found["events"]:
        facts = {key: value for key, value in line.items() if key not in ("time", "event")}
        words = ", ".join(
            f"{from_english(key)}: {value}" for key, value in facts.items() if value != ""
        )
        event = str(from_english(str(line.get("event"))))
        events.add_row(format_time(line.get("time")), escape(event), escape(words))
    show(events)
    runs = [Listed.of(run) for run in found["runs"]]
    if not runs:
        print_line(
            message("There are no runs yet: start one with `fedsight run CONFIG --federation DIR`.")
        )
        return
    table = make_table(
        *("run", "began", "rounds", "score", "sites", "state"),
        right=("rounds", "score"),
        whole=("began",),
    )
    for run in runs:
        table.add_row(*(escape(str(cell)) for cell in _run(run)))
    show(table)


def show_rounds(found: Mapping[str, Any]) -> None:
    """Print a run's rounds, as `views.rounds_table` has them: figures, how many sites took part,
    which were refused or are doubtful, and why."""
    numbers = ("round", "score", "loss", "seconds")
    table = make_table("round", "score", "loss", "sites", "seconds", "refused", right=numbers)
    for line in found["rounds"]:
        told = [*(line.get("rejected") or {}).items()]
        told += [(site, f"(counted) {why}") for site, why in (line.get("doubts") or {}).items()]
        missing = (line.get("not_measured") or {}).items()
        told += [(site, f"(not in the figures) {why}") for site, why in missing]
        table.add_row(
            str(line.get("round")),
            _share(line),
            _figure(line.get("loss"), ".3f"),
            _of(line.get("replies", ""), line.get("cohort", "")),
            _figure(line.get("seconds"), ".1f"),
            escape("\n".join(f"{site}: {from_english(why)}" for site, why in told)),
        )
    show(table)
    if (why := found["stopped"]) is not None:
        cause, cure = (from_english(str(why[key])) for key in ("cause", "cure"))
        print_line(message("The run stopped: {cause}\n  {cure}", cause=cause, cure=cure))


def show_log(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print what left a site, line by line, and the total."""
    table = make_table(
        *("time", "event", "run", "round", "bytes", "protections", "details"),
        right=("round", "bytes"),
        whole=("time", "event", "bytes"),
    )
    total = 0
    for line in lines:
        left = line.get("bytes")
        total += left if isinstance(left, int) else 0
        table.add_row(
            format_time(line.get("time")),
            escape(str(from_english(str(line.get("event"))))),
            escape(str(line.get("run", ""))[:8]),
            str(line.get("round", "")),
            "" if left is None else f"{left:,}",
            escape(protections(line)),
            escape(details(line)),
        )
    table.add_section()
    table.add_row(message("total"), "", "", "", f"{total:,}", "", size(total))
    show(table)


def show_departures(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print what left each of several sites, by kind."""
    table = make_table(
        *("site", "updates", "bytes of updates", "figures", "bytes of figures"),
        right=("updates", "bytes of updates", "figures", "bytes of figures"),
    )
    for site, lines in logs.items():
        cells = []
        for kinds in (("update",), SUMS):
            found = [int(line.get("bytes", 0)) for line in lines if line.get("event") in kinds]
            cells += [str(len(found)), f"{sum(found):,}"]
        table.add_row(escape(site), *cells)
    show(table)


def _connection(row: SiteRow) -> Text:
    if row.revoked:
        return message("refused")
    if row.since is None:
        return message("never")
    if row.connected and row.state == "stopped":
        return message("[red]process suspended[/]")
    if row.connected and row.state == "drained":
        return message("drained by its owner")
    if row.connected:
        return message("[green]connected[/] since {time}", time=_clock(row.since))
    if row.unknown:
        return message("unknown since {time}", time=_clock(row.since))
    return message("last seen {time}", time=_clock(row.since))


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _run(run: Listed) -> list[Text | str]:
    """A run's row."""
    figure = "" if run.score is None else share(run.score, run.score_error)
    rounds = _of(run.round, run.rounds) if run.rounds is not None else "0"
    sites = "" if run.sites is None else str(run.sites)
    return [run.folder.name, format_time(run.created), rounds, figure, sites, state_words(run)]


def _of(done: object, all: object) -> Text:
    return message("{done} of {all}", done=done, all=all)


def _share(figures: Mapping[str, Any]) -> str:
    score, error = figures.get("score"), figures.get("score_error")
    return share(score, error) if isinstance(score, int | float) else ""


def _figure(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _clock(seconds: float) -> str:
    """A time in seconds as text; without the date if it is today."""
    text = format_time(_stamp(seconds))
    return text.removeprefix(format_time(_stamp(time.time()))[:11])


def format_time(text: Any) -> str:
    """An ISO time as text, in this machine's time zone."""
    try:
        return datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return str(text)
