"""`fedsight site`: take part in a federation with images that stay at the site."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from fedsight.cli.console import (
    CertificateOption,
    HostOption,
    KeyOption,
    ProxyOption,
    need_console,
    say_address,
)
from fedsight.cli.monitoring import LogOption, MetricsOption, monitoring
from fedsight.cli.output import JsonOption, echo
from fedsight.console import SITE_PORT
from fedsight.language.english import from_english
from fedsight.language.message import message

app = typer.Typer(
    no_args_is_help=True, help="Take part in a federation; the images stay at the site."
)

SiteFolderOption = Annotated[
    Path,
    typer.Argument(metavar="[DIR]", help="The site's folder (default: the current one)."),
]


@app.command("init")
def init_command(
    invitation: Annotated[
        Path,
        typer.Argument(
            metavar="INVITATION", help="The operator's invitation.toml.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="The site's name.", show_default=False)],
    dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The site's folder (default: NAME).", show_default=False),
    ] = None,
) -> None:
    """Create a site's secret key, which never leaves it, and a request for the operator.

    Run again with a newer invitation, it keeps the key and changes to the server's new port.

    Example: fedsight site init invitation.toml --name ward-3
    """
    from fedsight.deploy.membership import hosts
    from fedsight.deploy.membership.federation import Invitation
    from fedsight.deploy.membership.requests import SigningRequest, check_name
    from fedsight.deploy.requirements import need_engine

    found = Invitation.read(invitation)
    check_name(name, "the site")
    need_engine()
    from fedsight.deploy.site.folder import SiteFolder

    folder = dir or Path(name)
    if (folder / "identity.toml").is_file() and (site := SiteFolder.open(folder)).name == name:
        site.update_invitation(found)
        address = hosts.written(found.host, found.port)
        echo(
            message(
                "'{site}' will connect to {address} at its next start", site=name, address=address
            )
        )
        return
    request = SiteFolder.create(folder, name, found)
    echo(
        message(
            "Send this file to the operator: {request}\n"
            "Authority: {authority}\n"
            "Request:   {fingerprint}\n"
            "Compare the authority with the one that the operator tells you over another channel "
            "than the invitation, and tell the operator the request in the same way.\n"
            "Put the operator's answer, {site}.signed.zip, into {folder}, then run: "
            "fedsight site start {folder} --data FOLDER\n"
            "What the site agrees to is in {file}",
            request=request,
            authority=found.fingerprint,
            fingerprint=SigningRequest.read(request).fingerprint,
            site=name,
            folder=folder,
            file=folder / "site.toml",
        )
    )


@app.command("start")
def start_command(
    folder: SiteFolderOption = Path(),
    data: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="A folder or file of images, or a built-in sample (default: [data] of site.toml).",
            show_default=False,
        ),
    ] = None,
    contract: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read this file instead of the site's site.toml.",
            show_default=False,
        ),
    ] = None,
    admission: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The operator's answer (default: NAME.signed.zip in the site's folder).",
            show_default=False,
        ),
    ] = None,
    metrics: MetricsOption = None,
    log: LogOption = None,
) -> None:
    """Check the images, then take part in the federation's runs until Ctrl-C or SIGTERM.

    Example: fedsight site start ward-3 --data /images --admission ward-3.signed.zip
    """
    from fedsight.deploy.requirements import need_engine

    need_engine()
    from fedsight.deploy.site.folder import SiteFolder

    SiteFolder.open(folder).start(data, contract, _say, admission, monitoring(metrics, log))


@app.command("renew")
def renew_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The site's folder.", show_default=False),
    ],
    certificate: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The renewed certificate, NAME.crt.", show_default=False
        ),
    ],
) -> None:
    """Take over the site's renewed certificate, for the same key; a running site does so by itself.

    Example: fedsight site renew ward-3 ward-3.crt
    """
    from fedsight.cli.renewal import take_over
    from fedsight.core.errors import DeployError
    from fedsight.deploy.site.folder import SiteFolder

    site = SiteFolder.open(folder)
    if not (site.kit / "startup").is_dir():
        cause = f"site '{site.name}' has not been admitted yet, so it has nothing to renew"
        raise DeployError(cause, "see: fedsight site start")
    take_over(site.name, site.kit, certificate)


@app.command("drain")
def drain_command(
    folder: SiteFolderOption = Path(),
    end: Annotated[bool, typer.Option("--end", help="Take part again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Finish the round in progress and take part in nothing new, until `--end`.

    The server is told; the site stays connected, and may then be stopped without a loss.

    Example: fedsight site drain ward-3
    """
    from fedsight.deploy.membership.federation import check_site_folder
    from fedsight.deploy.processes import supervisor
    from fedsight.deploy.site import state

    check_site_folder(folder)
    state.drain(folder, not end)
    works = state.works(folder) if supervisor.is_running(folder) else []
    if as_json:
        echo(json.dumps({"drained": not end, "doing": works[0].doing if works else None}))
    elif end:
        echo(message("The site takes part again."))
    elif works:
        for work in works:
            echo(message("The site takes nothing new; it is still {doing}.", doing=work.doing))
    else:
        echo(message("The site takes nothing new, and has nothing to finish."))


@app.command("programs")
def programs_command(
    folder: SiteFolderOption = Path(),
    settings: Annotated[
        bool, typer.Option("--settings", help="Also all settings of programs that wait.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the programs that wait for the owner's approval, and what was decided.

    They wait where the contract says so: approval = true below [contract] in site.toml.

    Example: fedsight site programs ward-3 --settings
    """
    from fedsight.cli.approvals import as_table, show_programs
    from fedsight.deploy.membership.federation import check_site_folder

    check_site_folder(folder)
    if as_json:
        echo(json.dumps(as_table(folder), indent=2, ensure_ascii=False))
    else:
        show_programs(folder, settings)


FingerprintArgument = Annotated[
    str,
    typer.Argument(
        metavar="FINGERPRINT", help="Of the program, all 64 digits.", show_default=False
    ),
]
DecidedFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The site's folder.", show_default=False)
]


@app.command("approve")
def approve_command(folder: DecidedFolder, fingerprint: FingerprintArgument) -> None:
    """Approve a program: it may run here, as far as the contract permits it.

    The decision is in the site's ledger and holds for all runs of this program; with any other
    setting, the seed too, it is another program.

    Example: fedsight site approve ward-3 FINGERPRINT
    """
    from fedsight.core.errors import ConfigError
    from fedsight.deploy.findings import contract_in_force
    from fedsight.deploy.site import approvals

    approvals.decide(folder, fingerprint, approve=True)
    echo(message("Approved: {fingerprint}", fingerprint=fingerprint))
    asks = True
    with contextlib.suppress(ConfigError):  # what was decided holds, whatever site.toml says
        asks = contract_in_force(folder).approval
    if not asks:
        echo(
            message(
                "The contract does not ask for it: other programs run without your approval. See "
                "approval below [contract] in site.toml."
            )
        )


@app.command("refuse")
def refuse_command(folder: DecidedFolder, fingerprint: FingerprintArgument) -> None:
    """Refuse a program for good, also one that was approved: it begins no further round here.

    Example: fedsight site refuse ward-3 FINGERPRINT
    """
    from fedsight.deploy.site import approvals

    approvals.decide(folder, fingerprint, approve=False)
    echo(message("Refused for good: {fingerprint}", fingerprint=fingerprint))


@app.command("console")
def console_command(
    folder: SiteFolderOption = Path(),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port on this machine; 0: any that is free.")
    ] = SITE_PORT,
    host: HostOption = "127.0.0.1",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    proxy: ProxyOption = None,
) -> None:
    """Serve a page for the owner of a site: what left it, what is asked now, and programs to
    approve or refuse.

    On this machine its address holds a token: who has it can do what you can do with fedsight site.
    For other machines, it speaks TLS, and takes the tokens of `fedsight tokens`.

    Example: fedsight site console ward-3
    """
    need_console()
    from fedsight.console.door import Wish
    from fedsight.console.server import serve_site
    from fedsight.deploy.site.approvals import require_own
    from fedsight.deploy.site.folder import SiteFolder

    site = SiteFolder.open(folder)
    require_own(site.folder)
    serve_site(site, Wish(port, host, certificate, key, proxy), say_address)


@app.command("doctor")
def doctor_command(
    folder: SiteFolderOption = Path(),
    program: Annotated[
        Path | None,
        typer.Option(
            "--program",
            metavar="CONFIG",
            help="Also whether the site could take part in this program.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a run will need: settings, images, keys, certificate, disk, clock, the server.

    The exit code is 0 if the site can take part, and 1 if something keeps it from that. Nothing
    leaves the site.

    Example: fedsight site doctor ward-3
    """
    from fedsight.cli.doctor import show
    from fedsight.cli.doctor_deployed import site_findings
    from fedsight.deploy.site.folder import SiteFolder

    show(list(site_findings(SiteFolder.open(folder), program)), as_json)


@app.command("log")
def log_command(
    folder: SiteFolderOption = Path(),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
) -> None:
    """Show what left this site: when, for which run, how many bytes, under which protections.

    Example: fedsight site log ward-3
    """
    from fedsight.cli.members import show_log
    from fedsight.deploy.membership.federation import check_site_folder
    from fedsight.deploy.site.log import SiteLog

    check_site_folder(folder)
    lines = SiteLog(folder).read()
    if as_json:
        echo(json.dumps(lines, indent=2, ensure_ascii=False))
    else:
        show_log(lines)


@app.command("recognisers")
def recognisers_command(
    folder: SiteFolderOption = Path(),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
) -> None:
    """Show the site's own recognisers: which kind of model each is, and what it gains.

    Each folder is ready for `fedsight predict` and `fedsight export`. None of this leaves the site.

    Example: fedsight site recognisers ward-3
    """
    from fedsight.cli.recognisers import show_recognisers
    from fedsight.deploy.membership.federation import check_site_folder
    from fedsight.deploy.site.delivery.listing import as_list

    check_site_folder(folder)
    if as_json:
        echo(json.dumps(as_list(folder), indent=2, ensure_ascii=False))
    else:
        show_recognisers(folder)


@app.command("ledger")
def ledger_command(
    folder: SiteFolderOption = Path(),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of tables.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check that no entry was altered.")
    ] = False,
    clock: Annotated[
        bool,
        typer.Option(
            "--clock", help="Record that this machine's clock was wrong and is right now."
        ),
    ] = False,
) -> None:
    """Show the site's ledger: what left the site over all runs, and how much epsilon it cost.

    Every entry is checked. If one was altered, the command names it and exits with code 7.

    Example: fedsight site ledger ward-3
    """
    from fedsight.deploy.membership.federation import check_site_folder

    check_site_folder(folder)
    from fedsight.cli.ledger import as_table, show_ledger, verified
    from fedsight.governance.entries import LedgerEntry
    from fedsight.governance.ledger import Ledger

    ledger = Ledger(folder)
    if clock:
        ledger.append(LedgerEntry("clock"))
    if verify:
        echo(verified(ledger))
    elif as_json:
        echo(json.dumps(as_table(ledger, folder), indent=2, ensure_ascii=False))
    else:
        show_ledger(ledger, folder)


def _say(text: str) -> None:
    echo(from_english(text))
