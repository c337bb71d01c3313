"""`fedsight federation renew`, and what is said of certificates that end soon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo
from fedsight.cli.place import FederationOption, open_federation
from fedsight.language.message import Text, message

if TYPE_CHECKING:
    from fedsight.deploy.membership.renewal import Ending

KINDS = {
    "authority": message("authority"),
    "server": message("server"),
    "operator": message("operator"),
    "site": message("site"),
}


def renew_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Sites, operators or the server's host (default: all who have an earlier end).",
            show_default=False,
        ),
    ] = None,
    federation: FederationOption = None,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How many days the certificates are valid.")
    ] = 825,
) -> None:
    """Renew certificates for the keys that the members have: nobody needs a new kit.

    The authority's key has to be in place for that. Sites that are connected get theirs from the
    server by themselves.

    Example: fedsight federation renew --federation hospitals
    """
    from fedsight.deploy.membership.federation import OPERATOR
    from fedsight.deploy.membership.renewal import renew
    from fedsight.deploy.processes import supervisor

    found = open_federation(federation)
    done = renew(found, names or (), days)
    listed = ", ".join(one.name for one in done)
    echo(message("Renewed for {days} days: {names}", days=days, names=listed))
    kinds = {one.kind for one in done}
    if "server" in kinds and supervisor.is_running(found.server_home):
        echo(
            message(
                "Restart `fedsight server start` before its old certificate ends: it shows the new "
                "one from then on. A run in progress goes on."
            )
        )
    if "site" in kinds:
        echo(
            message(
                "Sites that are connected get theirs from the running server within a minute. Send "
                "any other its file from {folder}; its owner runs: fedsight site renew DIR FILE",
                folder=found.folder / "admitted",
            )
        )
    if any(one.kind == "operator" and one.name != OPERATOR for one in done):
        echo(message("Operators get theirs with the next command that they start here."))


def take_over(name: str, kit: Path, file: Path) -> None:
    """Replace the certificate in the kit of `name` by its renewal in a file, and say so."""
    from fedsight.core.errors import DeployError
    from fedsight.deploy.membership import certificates

    try:
        with file.open("rb") as opened:
            data = opened.read(certificates.MAX_BYTES + 1)
    except OSError as error:
        cause = f"{file} cannot be read: {error.strerror}"
        raise DeployError(cause, "give the file that the operator sent") from None
    startup = kit / "startup"
    if not certificates.take(startup, data):
        echo(message("'{name}' has this certificate already.", name=name))
        return
    end = certificates.read(startup / "client.crt").not_valid_after_utc.date()
    echo(
        message(
            "The certificate of '{name}' is valid until {date}. It is used from the next "
            "connection to the server on.",
            name=name,
            date=end,
        )
    )


def warnings(endings: Sequence[Ending]) -> list[Text]:
    """A sentence for each certificate that has ended or ends soon, with the command that helps."""
    return [_warning(one) for one in endings if one.soon]


def _warning(one: Ending) -> Text:
    facts = {"kind": KINDS[one.kind], "name": one.name, "days": one.days}
    if one.end is None:
        return message(
            "The certificate of the {kind} '{name}' cannot be read: restore the federation's "
            "folder from a backup",
            **facts,
        )
    facts["date"] = one.end.date()
    if one.kind == "authority":
        return message(
            "The authority's certificate ends on {date} ({days:,} days). Nothing is signed for "
            "longer, and it cannot be renewed: create a new federation before that day, and have "
            "all members join it.",
            **facts,
        )
    if one.days < 0:
        return message(
            "The certificate of the {kind} '{name}' ended on {date}: fedsight federation renew",
            **facts,
        )
    return message(
        "The certificate of the {kind} '{name}' ends in {days:,} days, on {date}: fedsight "
        "federation renew",
        **facts,
    )
