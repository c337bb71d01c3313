"""`fedsight health`: whether a server or a site works, for whatever watches over its process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsight.cli.output import JsonOption, echo
from fedsight.language.message import message

UNWELL = 1  # exit code


def health_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[DIR]",
            help="The folder of a federation or a site, or of several (default: the current one).",
        ),
    ] = Path(),
    connected: Annotated[
        bool,
        typer.Option(
            "--connected",
            help="A site that the server does not answer is not well; nor is what is still "
            "starting, or has a full disk.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether a server or a site works; the exit code is 0 if so, and 1 otherwise.

    It looks at files and processes of this machine alone, and takes about a second: for the health
    checks of containers and the like. `federation doctor` and `site doctor` look at everything.

    Example: fedsight health ward-3
    """
    from fedsight.deploy.health import look

    found = look(folder, connected)
    if as_json:
        rows = [{"what": str(one.what), "fault": str(one.fault) or None} for one in found]
        echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for one in found:
            echo(message("{what}: {state}", what=one.what, state=one.fault or message("works")))
    if any(one.fault for one in found):
        raise typer.Exit(UNWELL)
