"""`fedsight console`: runs and federations in the browser, while they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsight.cli.output import echo
from fedsight.console import PORT
from fedsight.core.errors import StoreError
from fedsight.core.extras import install, missing
from fedsight.language.message import message


def console_command(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port on this machine; 0: any that is free.")
    ] = PORT,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            metavar="DIR",
            help="The folder that holds the run folders (default: runs, or the federation's).",
            show_default=False,
        ),
    ] = None,
    federation: Annotated[
        Path | None,
        typer.Option(
            "--federation",
            metavar="DIR",
            help="Show the sites and the runs of this federation.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a page on this machine that shows runs while they go on, and starts and stops them.

    Its address holds a token: who has it can do what you can do with fedsight.

    Example: fedsight console --runs runs
    """
    need_console()
    from fedsight.console.server import serve

    found = None
    if federation is not None:
        from fedsight.deploy.membership.federation import FederationFolder

        found = FederationFolder.open(federation)
    root = runs or (found.runs if found is not None else Path("runs"))
    if found is not None and root.resolve() != found.runs.resolve():
        cause = f"the runs of the federation '{found.name}' are in {found.runs}"
        raise StoreError(cause, "leave --runs out")

    serve(root, found, port, say_address)


def need_console() -> None:
    """Raise StoreError if what serves consoles is not installed."""
    if absent := missing("console"):
        names = ", ".join(absent)
        raise StoreError(f"the console needs what is not installed: {names}", install("console"))


def say_address(address: str) -> None:
    """Print where a console is."""
    echo(message("The console is at {address}\nEnd it with Ctrl-C.", address=address))
