"""`fedsight server`: the process that the sites of a federation connect to."""

from __future__ import annotations

from typing import Annotated

import typer

from fedsight.cli.monitoring import LogOption, MetricsOption, monitoring
from fedsight.cli.output import echo
from fedsight.cli.place import FederationOption, open_federation
from fedsight.cli.renewal import warnings
from fedsight.language.english import from_english

app = typer.Typer(no_args_is_help=True, help="Run the server of a federation.")


@app.command("start")
def start_command(
    federation: FederationOption = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Use this port from now on; sites then need the new invitation.",
            show_default=False,
        ),
    ] = None,
    metrics: MetricsOption = None,
    log: LogOption = None,
) -> None:
    """Serve a federation until Ctrl-C or SIGTERM; a process that dies is restarted.

    Example: fedsight server start --federation hospitals
    """
    from fedsight.deploy.requirements import need_engine

    found = open_federation(federation)
    need_engine()
    from fedsight.deploy.membership.renewal import endings
    from fedsight.deploy.server.server import start

    for text in warnings(endings(found)):
        echo(text)
    start(found, port, lambda text: echo(from_english(text)), monitoring(metrics, log))
