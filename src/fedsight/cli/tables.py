"""Tables and lines on a terminal; cells and lines may quote what another machine chose."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from fedsight.core.text import printable_lines


class PrintableTable(Table):
    """A table in whose cells unsafe characters are escaped (`core/text.py`)."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; texts may have markup, and line breaks."""
        safe = (printable_lines(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*safe, **options)

    def add_column(self, header: RenderableType = "", *rest: Any, **options: Any) -> None:
        """Add a column."""
        safe = printable_lines(header) if isinstance(header, str) else header
        super().add_column(safe, *rest, **options)


def show(table: PrintableTable) -> None:
    """Print a table."""
    Console(highlight=False, emoji=False).print(table)


def print_line(text: str) -> None:
    """Print a text without markup."""
    line = escape(printable_lines(text))
    Console(highlight=False, emoji=False).print(line, soft_wrap=True)
