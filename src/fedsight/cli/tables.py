"""Tables and lines on a terminal; cells and lines may quote what another machine chose."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from fedsight.core.text import printable_lines
from fedsight.language.message import Message, Text


class PrintableTable(Table):
    """A table in whose cells unsafe characters are escaped (`core/text.py`)."""

    def add_row(self, *cells: RenderableType | Text | None, **options: Any) -> None:
        """Add a row; texts may have markup, and line breaks."""
        shown = (str(cell) if isinstance(cell, Text) else cell for cell in cells)
        safe = (printable_lines(cell) if isinstance(cell, str) else cell for cell in shown)
        super().add_row(*safe, **options)

    def add_column(self, header: RenderableType = "", *rest: Any, **options: Any) -> None:
        """Add a column."""
        safe = printable_lines(header) if isinstance(header, str) else header
        super().add_column(safe, *rest, **options)


def make_table(
    *columns: str,
    right: Collection[str] = (),
    whole: Collection[str] = (),
    least: int | None = None,
) -> PrintableTable:
    """An empty table whose headings are told in the current language.

    Columns in `right` are aligned to the right, those in `whole` are never broken into lines, and
    all others are `least` characters wide or more.
    """
    table = PrintableTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        side: Literal["left", "right"] = "right" if column in right else "left"
        kept = column in whole
        table.add_column(
            str(Message(column)),
            justify=side,
            overflow="fold",
            no_wrap=kept,
            min_width=None if kept else least,
        )
    return table


def show(table: PrintableTable, markup: bool = True) -> None:
    """Print a table."""
    Console(highlight=False, emoji=False).print(table, markup=markup)


def print_line(text: Text | str) -> None:
    """Print a text without markup."""
    line = escape(printable_lines(str(text)))
    Console(highlight=False, emoji=False).print(line, soft_wrap=True)
