"""`fedsight console`: runs and federations in the browser, while they go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo
from fedsight.cli.place import OperatorOption, open_federation
from fedsight.console import PORT
from fedsight.core.errors import StoreError
from fedsight.core.extras import install, missing
from fedsight.language.message import message

if TYPE_CHECKING:
    from fedsight.console.server import Said

HostOption = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="The address of this machine to listen on; all but its own alone take TLS.",
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The certificate for TLS, with its chain, in PEM.", show_default=False
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The key of the certificate, without a passphrase, in PEM.",
        show_default=False,
    ),
]
ProxyOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The https address under which a proxy on this machine shows the console.",
        show_default=False,
    ),
]


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
    operator: OperatorOption = None,
    host: HostOption = "127.0.0.1",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    proxy: ProxyOption = None,
) -> None:
    """Serve a page that shows runs while they go on, and starts and stops them.

    On this machine its address holds a token: who has it can do what you can do with fedsight. For
    other machines, it speaks TLS, and takes the tokens of `fedsight tokens`.

    Example: fedsight console --runs runs
    """
    need_console()
    from fedsight.console.door import Wish
    from fedsight.console.server import serve

    found = None
    if federation is not None:
        found = open_federation(federation, operator)
        if operator is not None:  # runs are processes of their own, and sign their jobs
            os.environ["FEDSIGHT_OPERATOR"] = str(operator.absolute())
    root = runs or (found.runs if found is not None else Path("runs"))
    if found is not None and root.resolve() != found.runs.resolve():
        cause = f"the runs of the federation '{found.name}' are in {found.runs}"
        raise StoreError(cause, "leave --runs out")

    serve(root, found, Wish(port, host, certificate, key, proxy), say_address)


def need_console() -> None:
    """Raise StoreError if what serves consoles is not installed."""
    if absent := missing("console"):
        names = ", ".join(absent)
        raise StoreError(f"the console needs what is not installed: {names}", install("console"))


def say_address(said: Said) -> None:
    """Print where a console is."""
    if said.fingerprint is not None:
        echo(message("SHA-256 of its certificate: {digest}", digest=said.fingerprint))
    if said.names:
        names = ", ".join(said.names)
        echo(message("It takes the tokens of: {names}", names=names))
    echo(message("The console is at {address}\nEnd it with Ctrl-C.", address=said.address))
