"""`fedsight operator` and `fedsight federation operator`: who may start runs, and who looks on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fedsight.cli.output import JsonOption, echo
from fedsight.cli.place import FederationOption, OperatorOption, open_federation
from fedsight.cli.train import Sets
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.deploy.membership.federation import FederationFolder

app = typer.Typer(
    no_args_is_help=True, help="Operate a federation with a key of your own, or look on."
)
members = typer.Typer(
    no_args_is_help=True, help="Who may start runs in this federation, and who looks on."
)

ReadOnly = Annotated[
    bool, typer.Option("--read-only", help="Look on: start, stop and revoke nothing.")
]


@app.command("init")
def init_command(
    invitation: Annotated[
        Path,
        typer.Argument(
            metavar="INVITATION",
            help="The invitation.toml of the federation.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Your name, in the form of an e-mail address.",
            show_default=False,
        ),
    ],
    read_only: ReadOnly = False,
    dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The new folder (default: NAME).", show_default=False),
    ] = None,
) -> None:
    """Create an operator's secret key, which never leaves this machine, and a request.

    Example: fedsight operator init invitation.toml --name anna@lyon.example
    """
    from fedsight.deploy.membership.federation import Invitation
    from fedsight.deploy.membership.requests import SigningRequest, check_operator_name
    from fedsight.deploy.requirements import need_engine

    found = Invitation.read(invitation)
    check_operator_name(name)
    need_engine()
    from fedsight.deploy.membership.operator_folder import OperatorFolder

    folder = dir or Path(name)
    request = OperatorFolder.create(folder, name, found, read_only)
    echo(
        message(
            "Send this file to who created the federation: {request}\n"
            "Authority: {authority}\n"
            "Request:   {fingerprint}\n"
            "Compare the authority with the one that they tell you over another channel than the "
            "invitation, and tell them the request in the same way.\n"
            "Put the answer, {name}.signed.zip, into {folder}, and give that folder with "
            "--operator.",
            request=request,
            authority=found.fingerprint,
            fingerprint=SigningRequest.read(request).fingerprint,
            name=name,
            folder=folder,
        )
    )


@members.command("add")
def add_command(
    request: Annotated[
        Path,
        typer.Argument(metavar="REQUEST", help="An operator's .request.zip.", show_default=False),
    ],
    federation: FederationOption = None,
    read_only: ReadOnly = False,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How many days the certificate is valid.")
    ] = 825,
) -> None:
    """Sign the request of another operator; the signed file goes back.

    Example: fedsight federation operator add anna@lyon.example.request.zip --federation hospitals
    """
    from fedsight.deploy.membership.requests import SigningRequest
    from fedsight.deploy.requirements import need_engine

    found = open_federation(federation)
    need_engine()
    signed = found.add_operator(request, read_only, days)
    asked = SigningRequest.read(request)
    rights = message("may look on only") if read_only else message("may start and stop runs")
    echo(
        message(
            "Admitted the operator '{name}' to '{federation}' for {days} days: {path}\n"
            "Rights:  {rights}\n"
            "Request: {fingerprint}\n"
            "Compare the request with the one that they tell you before you send the answer.",
            name=asked.name,
            federation=found.name,
            days=days,
            path=signed,
            rights=rights,
            fingerprint=asked.fingerprint,
        )
    )


@members.command("list")
def list_command(federation: FederationOption = None, as_json: JsonOption = False) -> None:
    """List the operators: what they may do, since when and until when, and who was revoked.

    Example: fedsight federation operator list --federation hospitals
    """
    from fedsight.cli.tables import make_table, show
    from fedsight.deploy.membership.renewal import endings

    found = open_federation(federation)
    ends = {one.name: one.end for one in endings(found) if one.kind == "operator" and one.end}
    known = found.operators().values()
    if as_json:
        rows = [
            {**asdict(one), "until": ends[one.name].isoformat() if one.name in ends else None}
            for one in known
        ]
        echo(json.dumps(rows, indent=1))
        return
    table = make_table("operator", "rights", "since", "until", "revoked")
    for one in known:
        until = str(ends[one.name].date()) if one.name in ends else ""
        rights = message("looks on") if one.read_only else message("starts and stops runs")
        table.add_row(escape(one.name), str(rights), one.admitted[:10], until, escape(one.revoked))
    show(table)


@members.command("revoke")
def revoke_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An operator's name.", show_default=False)
    ],
    federation: FederationOption = None,
    why: Annotated[str, typer.Option(help="The reason, for the history.", show_default=False)] = "",
    operator: OperatorOption = None,
) -> None:
    """Take an operator's rights away for good: server and sites refuse what they sign.

    Example: fedsight federation operator revoke anna@lyon.example --why "has left"
    """
    from fedsight.cli.federation import sign_revocations
    from fedsight.deploy.requirements import need_engine

    need_engine()
    found = open_federation(federation, operator)
    _require_operator(found, name)
    found.revoke(name, why)
    try:
        from fedsight.deploy.server.server import end_jobs

        ended = None if name == found.operator_name else end_jobs(found, name)
        what = message("the server is not running; it will refuse them when it starts")
        if ended is not None:
            what = message("the server refuses them; jobs of theirs that were ended: {n}", n=ended)
        elif name == found.operator_name:
            what = message(
                "the server refuses them, and so it does you: give another operator's folder with "
                "--operator from now on"
            )
        echo(message("Revoked the operator '{name}': {what}", name=name, what=what))
    finally:  # the sites are told even if the server cannot be
        sign_revocations(found)


def _require_operator(federation: FederationFolder, name: str) -> None:
    """Raise DeployError unless it is an operator's name: sites are revoked by another command."""
    from fedsight.core.errors import DeployError

    if name not in (known := federation.operators()):
        cause = f"'{name}' is not an operator of this federation"
        raise DeployError(cause, f"the operators are: {', '.join(known)}")


OwnFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Your operator's folder.", show_default=False)
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name.", show_default=False)]


@app.command("status")
def status_command(folder: OwnFolder, as_json: JsonOption = False) -> None:
    """Show the sites and the certificates of the federation, from any machine.

    Example: fedsight operator status anna@lyon.example
    """
    from fedsight.cli.members import show_sites
    from fedsight.cli.renewal import warnings
    from fedsight.cli.tables import print_line
    from fedsight.deploy.membership.overview import Sites
    from fedsight.deploy.membership.renewal import Ending
    from fedsight.deploy.server.looking import understood

    found = _look(folder, "status")
    if as_json:
        echo(json.dumps(found, indent=1))
        return
    sites = understood(found, Sites.of)
    endings = understood(found, lambda table: [Ending.of(one) for one in table["certificates"]])
    print_line(
        message(
            "Federation '{name}' at {address}; the server is running",
            name=sites.federation,
            address=sites.address,
        )
    )
    for text in warnings(endings):
        print_line(text)
    understood(found, lambda _: show_sites(sites.rows))


@app.command("history")
def history_command(
    folder: OwnFolder,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Show this run's rounds and who was refused.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the federation's events and runs, or the rounds of one run, from any machine.

    Example: fedsight operator history anna@lyon.example --run first
    """
    from fedsight.cli.members import show_history, show_rounds
    from fedsight.deploy.server.looking import understood

    found = _look(folder, "history") if run is None else _look(folder, "rounds", run)
    if as_json:
        echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        understood(found, show_history if run is None else show_rounds)


@app.command("report")
def report_command(
    folder: OwnFolder,
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write the page (default: RUN.html).", show_default=False
        ),
    ] = None,
) -> None:
    """Fetch the report of a run, from any machine.

    Example: fedsight operator report anna@lyon.example first
    """
    from fedsight.core.errors import StoreError
    from fedsight.core.files import write_atomically
    from fedsight.deploy.server.looking import understood

    target = out or Path(f"{Path(run).name}.html")
    if out is None and target.exists():
        raise StoreError(f"{target} exists already", "choose another file with --out")
    found = _look(folder, "report", run)
    write_atomically(target, understood(found, lambda table: str(table["report"]).encode()))
    echo(message("Report: {page}", page=target))


@app.command("run")
def run_command(
    folder: OwnFolder,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A TOML file.", show_default=False)
    ],
    sets: Sets = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Continue this run of the same program, instead of a new one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train one model over the sites of the federation, from any machine.

    The run is at the server. This machine signs its jobs, so it has to be there when one begins;
    Ctrl-C stops the run.

    Example: fedsight operator run anna@lyon.example my.toml
    """
    from fedsight.cli.train import read_program
    from fedsight.coordinator.store import to_toml
    from fedsight.deploy.membership.operator_folder import OperatorFolder
    from fedsight.deploy.requirements import need_engine
    from fedsight.deploy.server.remote_runs import check_program
    from fedsight.language.current import current_language

    program, speed = read_program(config, None, list(sets or []), None)
    text = to_toml(program, speed)
    check_program(text)
    own = OperatorFolder.open(folder)
    need_engine()
    from fedsight.deploy.server.remote_operator import Following, Request

    request = Request(text, program.fingerprint, current_language(), resume or "")
    code = Following(own, request, _tell).follow()
    if code:
        raise typer.Exit(code)


def _tell(said: str) -> None:
    """Print what the process at the server says, in the language that it was asked in."""
    echo(said, nl=False)


@app.command("pause")
def pause_command(folder: OwnFolder, run: RunName) -> None:
    """End a run of the federation after the round in progress, from any machine.

    Example: fedsight operator pause anna@lyon.example first
    """
    _ask(folder, "pause", run)
    echo(message("{run} will pause after the round in progress", run=run))


@app.command("stop")
def stop_command(folder: OwnFolder, run: RunName) -> None:
    """End a run of the federation now, from any machine.

    Example: fedsight operator stop anna@lyon.example first
    """
    _ask(folder, "stop", run)
    echo(message("{run} is told to stop", run=run))


@app.command("renew")
def renew_command(
    folder: OwnFolder,
    certificate: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The renewed certificate, NAME.crt.", show_default=False
        ),
    ],
) -> None:
    """Take over your renewed certificate, if the old one has expired; else that happens by itself.

    Example: fedsight operator renew anna@lyon.example anna@lyon.example.crt
    """
    from fedsight.cli.renewal import take_over
    from fedsight.deploy.membership.operator_folder import OperatorFolder

    own = OperatorFolder.open(folder)
    own.install_kit()
    take_over(own.name, own.kit, certificate)


def count_sites(folder: Path) -> int:
    """How many sites the federation has of the operator in `folder`, by its server."""
    from fedsight.deploy.membership.overview import Sites
    from fedsight.deploy.server.looking import understood

    rows = understood(_look(folder, "status"), Sites.of).rows
    return sum(not row.revoked for row in rows)


def _ask(folder: Path, what: str, run: str) -> None:
    from fedsight.deploy.membership.operator_folder import OperatorFolder
    from fedsight.deploy.requirements import need_engine

    own = OperatorFolder.open(folder)
    need_engine()
    from fedsight.deploy.server.looking import ask

    ask(own, what, run)


def _look(folder: Path, what: str, *run: str) -> dict[str, Any]:
    from fedsight.deploy.membership.operator_folder import OperatorFolder
    from fedsight.deploy.requirements import need_engine

    own = OperatorFolder.open(folder)
    need_engine()
    from fedsight.deploy.server.looking import look

    return look(own, what, *run)
