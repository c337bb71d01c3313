"""`fedsight tokens`: who may use a console from another machine, and for how long."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import JsonOption, echo
from fedsight.core.errors import StoreError
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.console.tokens import Token, TokenFile

app = typer.Typer(
    no_args_is_help=True, help="Who may use a console from other machines, and for how long."
)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Of whom it is for.", show_default=False)
]
FederationConsole = Annotated[
    Path | None,
    typer.Option(
        "--federation",
        metavar="DIR",
        help="For the console of this federation; its operators alone can have one.",
        show_default=False,
    ),
]
SiteConsole = Annotated[
    Path | None,
    typer.Option("--site", metavar="DIR", help="For the console of this site.", show_default=False),
]
RunsConsole = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        metavar="DIR",
        help="For the console of the runs in this folder (default: runs).",
        show_default=False,
    ),
]


@app.command("add")
def add_command(
    name: NameArgument,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="To look on: start, stop and decide nothing.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, max=366, help="For how many days it holds.")] = 30,
    federation: FederationConsole = None,
    site: SiteConsole = None,
    runs: RunsConsole = None,
) -> None:
    """Make a token for somebody. It is shown once; on file is only what it is recognised by.

    Example: fedsight tokens add anna@lyon.example --federation hospitals
    """
    file = _file(federation, site, runs, name)
    _show(*file.add(name, read_only, days))


@app.command("rotate")
def rotate_command(
    name: NameArgument,
    federation: FederationConsole = None,
    site: SiteConsole = None,
    runs: RunsConsole = None,
) -> None:
    """Make another token for somebody, for as long; the old one ends at once.

    Example: fedsight tokens rotate anna@lyon.example --federation hospitals
    """
    _show(*_file(federation, site, runs, name).rotate(name))


@app.command("revoke")
def revoke_command(
    name: NameArgument,
    federation: FederationConsole = None,
    site: SiteConsole = None,
    runs: RunsConsole = None,
) -> None:
    """Take somebody's token away. Whoever is logged in with it is out within a second.

    Example: fedsight tokens revoke anna@lyon.example --federation hospitals
    """
    _file(federation, site, runs).revoke(name)
    echo(message("The token of '{name}' has ended.", name=name))


@app.command("list")
def list_command(
    federation: FederationConsole = None,
    site: SiteConsole = None,
    runs: RunsConsole = None,
    as_json: JsonOption = False,
) -> None:
    """List for whom there are tokens, what each permits, and until when.

    Example: fedsight tokens list --federation hospitals
    """
    from rich.markup import escape

    from fedsight.cli.tables import make_table, show

    content = _file(federation, site, runs).read()
    found = () if content is None else content.tokens
    if as_json:
        rows = [
            {"name": one.name, "read_only": one.read_only, "until": _day(one), "ended": one.ended}
            for one in found
        ]
        echo(json.dumps(rows, indent=1))
        return
    table = make_table("for", "rights", "until", "state")
    for one in found:
        rights = message("looks on") if one.read_only else message("as their role permits")
        state = message("has ended") if one.ended else message("holds")
        table.add_row(escape(one.name), str(rights), _day(one), str(state))
    show(table)


def _file(
    federation: Path | None, site: Path | None, runs: Path | None, name: str | None = None
) -> TokenFile:
    """The tokens of the console that is meant; `name` is to be able to have one there."""
    if sum(one is not None for one in (federation, site, runs)) > 1:
        cause = "a token is for one console"
        raise StoreError(cause, "give one of --federation, --site and --runs")
    from fedsight.console.tokens import TokenFile, require_operator

    if federation is not None:
        from fedsight.deploy.membership.federation import FederationFolder

        found = FederationFolder.open(federation)
        if name is not None:
            require_operator(found, name)
        return TokenFile.within(found.folder)
    if site is not None:
        from fedsight.deploy.site.approvals import require_own
        from fedsight.deploy.site.folder import SiteFolder

        folder = SiteFolder.open(site).folder
        require_own(folder)
        return TokenFile.within(folder)
    return TokenFile.of_runs(runs or Path("runs"))


def _show(secret: str, token: Token) -> None:
    echo(
        message(
            "Token of '{name}', until {day}: {token}\n"
            "It is shown this once. Pass it on over a channel that nobody else reads; with it, "
            "{name} logs in at the console's address.",
            name=token.name,
            day=_day(token),
            token=secret,
        )
    )


def _day(token: Token) -> str:
    return datetime.fromtimestamp(token.until, UTC).date().isoformat()
