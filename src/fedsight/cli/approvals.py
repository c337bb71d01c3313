"""Programs that wait for the approval of a site's owner, in a terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsight.cli.members import format_time
from fedsight.cli.output import echo
from fedsight.cli.tables import print_line
from fedsight.deploy.site import approvals
from fedsight.deploy.site.approvals import FACTS, Decided, Request, iso
from fedsight.governance.ledger import Ledger
from fedsight.language.message import Text, message

_DIFFERS = message("What differs from the program of this name that you approved")


def ledger_of(home: Path) -> Ledger | None:
    """The site's ledger; None if it has none yet. StoreError if it is not intact."""
    return Ledger(home) if (home / "ledger.sqlite").exists() else None


def as_table(home: Path) -> dict[str, Any]:
    """What waits and what was decided, as plain values."""
    ledger = ledger_of(home)
    done = approvals.decided(home, ledger) if ledger is not None else []
    return {
        "waiting": [asdict(one) for one in approvals.waiting(home, ledger)],
        "decided": [
            {
                "fingerprint": one.entry.program,
                "approved": one.approved,
                "time": one.entry.time,
                "run": one.entry.run,
                "asked_by": list(one.entry.asked_by),
                "name": None if one.request is None else one.request.name,
            }
            for one in done
        ],
    }


def show_programs(home: Path, settings: bool) -> None:
    """Print what waits, with all its settings if so asked, and what was decided."""
    ledger = ledger_of(home)
    found = approvals.waiting(home, ledger)
    done = approvals.decided(home, ledger) if ledger is not None else []
    if not found:
        print_line(message("No program waits for your approval."))
    for one in found:
        _show_request(one, settings)
        if (differs := approvals.differences(one, done)) is not None:
            echo(f"  {_DIFFERS}")
            for line in differs:
                echo(f"    {line}")
    for decided in done:
        echo(_decision(decided))
    if found:
        site = str(home)
        echo(
            message(
                "Decide with: fedsight site approve {site} FINGERPRINT\n"
                "or: fedsight site refuse {site} FINGERPRINT",
                site=site,
            )
        )


def _show_request(one: Request, settings: bool) -> None:
    by = ", ".join(one.asked_by) or message("nobody who signed the job")
    echo(
        message(
            "{name} waits for your approval\n  fingerprint: {fingerprint}\n  asked by: {by}, for "
            "run {run}, last at {time}",
            name=one.name or message("a program without a name"),
            fingerprint=one.fingerprint,
            by=by,
            run=one.run,
            time=format_time(iso(one.last)),
        )
    )
    for key, title in FACTS.items():
        if key in one.facts:
            echo(f"  {message('{key}: {value}', key=title, value=one.facts[key])}")
    if settings:
        for line in one.settings.splitlines():
            echo(f"    {line}")


def _decision(one: Decided) -> Text:
    name = one.request.name if one.request is not None else ""
    told = {
        "name": name or message("a program without a name"),
        "fingerprint": one.entry.program,
        "time": format_time(one.entry.time),
    }
    if one.approved:
        return message("{name} was approved at {time}: {fingerprint}", **told)
    return message("{name} was refused at {time}: {fingerprint}", **told)
