"""The option `--plugin`: Python files with parts of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PluginFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A Python file that registers parts of your own; for a run that exists, one of its "
        "plug-ins that has moved. Repeatable.",
        show_default=False,
    ),
]


def import_plugins(files: list[Path] | None) -> None:
    """Import what `--plugin` names, relative to the current folder; ConfigError if one is wrong."""
    from fedsight.program import plugins

    plugins.parse(files or [], Path.cwd())
