"""What an operator sees of a federation, as plain values: its state, its history, a run, a report;
and what one asks of a run.

The command line prints these where the federation's folder is; the server gives them to operators
on other machines (`deploy/flare/reading.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError, StoreError
from fedsight.core.files import json_object, parse_json
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.operators import FOLDER
from fedsight.deploy.membership.overview import certificates_table, sites
from fedsight.deploy.server import remote_runs
from fedsight.runs.listing import control, listed

MAX_REPORT = 16 << 20  # characters of a report that is sent


def status_table(federation: FederationFolder) -> dict[str, Any]:
    """The server, its sites, and when certificates end."""
    return {**sites(federation).table(), "certificates": certificates_table(federation)}


def history_table(federation: FederationFolder) -> dict[str, Any]:
    """Events and runs, oldest first."""
    runs = listed(federation.runs) if federation.runs.is_dir() else []
    return {"events": federation.events(), "runs": [run.table() for run in reversed(runs)]}


def rounds_table(federation: FederationFolder, name: str) -> dict[str, Any]:
    """A run's rounds, as its folder has them, and how it stopped, if it did."""
    folder = _run_folder(federation, name)
    outcome = json_object(folder / "job.json")
    stopped = outcome.get("state") == "failed" and not (folder / "summary.json").exists()
    why = {key: outcome.get(key) for key in ("cause", "cure")} if stopped else None
    return {"rounds": _lines(folder), "stopped": why}


def report(federation: FederationFolder, name: str) -> dict[str, Any]:
    """The report of a run, as HTML."""
    path = _run_folder(federation, name) / "report.html"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        cause = f"the run '{name}' has no report yet"
        raise StoreError(cause, "a run has one once it has ended") from None
    except (OSError, ValueError) as error:
        cause = f"the report of '{name}' cannot be read: {error}"
        raise StoreError(cause, "make it again: fedsight report") from None
    if len(text) > MAX_REPORT:
        cause = f"the report of '{name}' has more than {MAX_REPORT:,} characters"
        raise StoreError(cause, "read it on the coordinator's machine")
    return {"report": text}


VIEWS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "status": status_table,
    "history": history_table,
    "rounds": rounds_table,
    "report": report,
}
OWN = "certificate"  # the view that each operator has another of
OF_A_RUN = ("rounds", "report")  # the views that take the name of a run


def own_certificate(federation: FederationFolder, operator: str) -> str:
    """The certificate of an operator as it lies here, which may have been renewed, as JSON."""
    if operator not in federation.operators():
        raise DeployError(f"'{operator}' is not an operator", "ask who created the federation")
    path = federation.folder / FOLDER / f"{operator}.crt"
    try:
        return json.dumps({"certificate": path.read_text(encoding="ascii")})
    except (OSError, ValueError) as error:
        raise StoreError(f"{path.name} cannot be read: {error}", "restore the file") from None


def view(federation: FederationFolder, what: str, *run: str) -> str:
    """One of VIEWS as JSON; DeployError or StoreError if there is no such thing."""
    if what not in VIEWS or len(run) != (what in OF_A_RUN):
        raise DeployError("there is no such view of a federation", "update this machine")
    return json.dumps(VIEWS[what](federation, *run))


def ask(federation: FederationFolder, operator: str, *words: str) -> str:
    """Ask a run to `pause` or to `stop`, or for a run, which is then followed (`remote_runs.py`),
    as JSON; DeployError or StoreError if that is not possible. The history says who asked."""
    match words:
        case ("begin", text):
            return json.dumps(remote_runs.begin(federation, operator, text))
        case ("seen", id, offset):
            return json.dumps(remote_runs.seen(federation, operator, id, offset))
        case ("submitted", id, text):
            return json.dumps(remote_runs.submitted(federation, operator, id, text))
        case (("pause" | "stop") as what, name):
            control(_run_folder(federation, name), what)
            federation.log_event("asked", what=what, run=name, operator=operator)
            return json.dumps({"asked": what})
    raise DeployError("there is nothing like that to be asked", "update this machine")


def _run_folder(federation: FederationFolder, name: str) -> Path:
    known = {path.parent.name: path.parent for path in federation.runs.glob("*/run.json")}
    if name not in known:
        raise StoreError(
            f"the federation has no run '{name}'",
            f"its runs are: {', '.join(sorted(known)) or 'none yet'}",
        )
    return known[name]


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "history.jsonl"
    try:
        return [parse_json(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        cure = "start the run again under another name"
        raise StoreError(f"the history {path} cannot be read: {error}", cure) from None
