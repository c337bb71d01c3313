"""How every command prints: whatever another machine chose is made visible, never acted upon."""

from __future__ import annotations

import typer

from fedsight.core.text import printable_lines


def echo(text: str, err: bool = False) -> None:
    """Print a text as it is, but with unsafe characters escaped (`core/text.py`)."""
    typer.echo(printable_lines(text), err=err)
