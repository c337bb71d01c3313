"""`fedsight report`: one self-contained HTML page from one run folder or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsight.cli.output import echo
from fedsight.language.message import message


def report_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders; several are compared side by side.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to write the page (default: report.html in the first run's folder).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of one run, or of several side by side, as one HTML page.

    The page is self-contained: it can be mailed, printed, and read offline.

    Example: fedsight report runs/first runs/second --out both.html
    """
    from fedsight.report.page import build

    echo(message("Wrote {path}", path=build(runs, out)))
