"""`fedsight federation`: create a federation, admit and revoke sites, show its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.demo import demo_command
from fedsight.cli.mistyped import Group
from fedsight.cli.operators import members
from fedsight.cli.output import JsonOption, echo
from fedsight.cli.place import FederationOption, OperatorOption, open_federation
from fedsight.cli.renewal import renew_command
from fedsight.core.errors import DeployError, FedSightError
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.deploy.membership.federation import FederationFolder

app = typer.Typer(
    no_args_is_help=True, help="Run a federation across machines: its members and its history."
)


@app.command("init")
def init_command(
    name: Annotated[
        Path,
        typer.Argument(
            metavar="NAME", help="The federation's new folder; its last part is the name."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="The name or address at which sites reach this machine.")
    ] = "localhost",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port on which the server listens.")
    ] = 8002,
) -> None:
    """Create a federation: its certificate authority, and certificates of server and operator.

    Example: fedsight federation init hospitals --host fl.example.org
    """
    from fedsight.deploy.membership.federation import FederationFolder
    from fedsight.deploy.requirements import need_engine

    need_engine()
    federation = FederationFolder.create(name, host, port)
    echo(
        message(
            "Created the federation '{federation}' in {folder}\n"
            "Authority: {fingerprint}\n\n"
            "1. Start the server:         fedsight server start --federation {folder}\n"
            "2. Send to every site:       {invitation}\n"
            "3. Each site asks to join:   fedsight site init invitation.toml --name SITE\n"
            "4. Admit a site's request:   fedsight federation admit SITE.request.zip --federation "
            "{folder}\n"
            "5. Train:                    fedsight run my.toml --federation {folder}\n\n"
            "Tell the sites the authority's fingerprint over another channel than the invitation, "
            "such as the telephone.\n"
            "Keep {secret} secret: anyone who has it can admit sites.",
            federation=federation.name,
            folder=name,
            fingerprint=federation.invitation.fingerprint,
            invitation=name / "invitation.toml",
            secret=name / "ca",
        )
    )


@app.command("admit")
def admit_command(
    request: Annotated[
        Path,
        typer.Argument(metavar="REQUEST", help="A site's .request.zip.", show_default=False),
    ],
    federation: FederationOption = None,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How many days the certificate is valid.")
    ] = 825,
) -> None:
    """Sign a site's request; the signed file goes back to the site.

    Example: fedsight federation admit ward-3.request.zip --federation hospitals
    """
    from fedsight.deploy.membership.requests import SigningRequest
    from fedsight.deploy.requirements import need_engine

    found = open_federation(federation)
    need_engine()
    signed = found.admit(request, days)
    site = signed.name.removesuffix(".signed.zip")
    echo(
        message(
            "Admitted '{site}' to '{federation}' for {days} days: {path}\n"
            "Request: {fingerprint}\n"
            "Compare the request with the one that the site's owner tells you before you send the "
            "answer.\n"
            "Send that file back; the site starts with: fedsight site start {site} "
            "--admission {file} --data FOLDER",
            site=site,
            federation=found.name,
            days=days,
            path=signed,
            fingerprint=SigningRequest.read(request).fingerprint,
            file=signed.name,
        )
    )


@app.command("revoke")
def revoke_command(
    site: Annotated[str, typer.Argument(metavar="SITE", help="A site's name.", show_default=False)],
    federation: FederationOption = None,
    why: Annotated[str, typer.Option(help="The reason, for the history.", show_default=False)] = "",
    operator: OperatorOption = None,
) -> None:
    """Exclude a site for good: its connection is dropped, and nothing from it is counted.

    Example: fedsight federation revoke ward-3 --why "its machine was stolen"
    """
    from fedsight.deploy.membership.requests import is_operators
    from fedsight.deploy.requirements import need_engine

    found = open_federation(federation, operator)
    if is_operators(site):
        cause = f"'{site}' is the name of an operator"
        raise DeployError(cause, "use: fedsight federation operator revoke")
    found.revoke(site, why)
    try:
        need_engine()
        from fedsight.deploy.server.server import disable_site

        what = message("the server is not running; it will refuse the site when it starts")
        if disable_site(found, site):
            what = message("the server has dropped its connection and refuses it from now on")
        echo(message("Revoked '{site}': {what}", site=site, what=what))
    finally:  # the sites are told even if the server cannot be
        sign_revocations(found)


def sign_revocations(found: FederationFolder) -> None:
    """Sign the list of revocations, and say whether that was possible."""
    try:
        found.sign_revocations()
    except FedSightError:
        text = message(
            "The list of revocations could not be signed with the key in {folder}, so the sites "
            "are not told. Put the authority's key there and revoke again.",
            folder=found.folder / "ca",
        )
    else:
        text = message(
            "The signed list of revocations has the number {n}. A running server sends it to the "
            "sites; those that have it refuse a server that was restored from an older backup.",
            n=found.revocations.number,
        )
    echo(text)


@app.command("status")
def status_command(federation: FederationOption = None, as_json: JsonOption = False) -> None:
    """Show whether the server is running, and each site's connection and images.

    Example: fedsight federation status --federation hospitals
    """
    from fedsight.cli.members import show_status
    from fedsight.deploy.server.views import status_table

    found = open_federation(federation)
    if as_json:
        echo(json.dumps(status_table(found), indent=1))
    else:
        show_status(found)


@app.command("doctor")
def doctor_command(federation: FederationOption = None, as_json: JsonOption = False) -> None:
    """Check what a run will need: the server, keys, certificates, disk, clock, and each site.

    The exit code is 0 if runs can begin, and 1 if something keeps them from that.

    Example: fedsight federation doctor --federation hospitals
    """
    from fedsight.cli.doctor import show
    from fedsight.cli.doctor_deployed import federation_findings

    show(list(federation_findings(open_federation(federation))), as_json)


@app.command("history")
def history_command(
    federation: FederationOption = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Show this run's rounds and who was refused.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the federation's events and runs, newest last, or the rounds of one run.

    Example: fedsight federation history --run first
    """
    from fedsight.cli.members import show_history, show_rounds
    from fedsight.deploy.server.views import history_table, rounds_table

    found = open_federation(federation)
    table = history_table(found) if run is None else rounds_table(found, run)
    if as_json:
        echo(json.dumps(table, indent=1, ensure_ascii=False))
    elif run is None:
        show_history(table)
    else:
        show_rounds(table)


app.command("demo")(demo_command)
app.command("renew")(renew_command)
app.add_typer(members, name="operator", cls=Group)
