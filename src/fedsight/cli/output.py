"""How every command prints: in the current language, and whatever another machine chose is made
visible, never acted upon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from fedsight.core.text import printable_lines
from fedsight.language.english import from_english
from fedsight.language.message import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def echo(text: Text | str, err: bool = False, nl: bool = True) -> None:
    """Print a text, with unsafe characters escaped (`core/text.py`); a string is printed as it is.

    JSON and names are strings; what people read is a message. `nl`: a new line follows.
    """
    typer.echo(printable_lines(str(text)), err=err, nl=nl)


def reasons(counts: Mapping[str, int]) -> str:
    """What was passed over, in one line: `.heic 30, dead links 30, hidden 4`."""
    return ", ".join(f"{from_english(reason)} {n}" for reason, n in sorted(counts.items()))
