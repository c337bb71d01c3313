"""Finds the federation that a command refers to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsight.core.errors import DeployError

if TYPE_CHECKING:
    from fedsight.deploy.membership.federation import FederationFolder

FederationOption = Annotated[
    Path | None,
    typer.Option(
        "--federation",
        metavar="DIR",
        help="The federation's folder (default: the only one here).",
        show_default=False,
    ),
]


OperatorOption = Annotated[
    Path | None,
    typer.Option(
        "--operator",
        metavar="DIR",
        envvar="FEDSIGHT_OPERATOR",
        help="Your own operator's folder (default: the operator created with the federation).",
        show_default=False,
    ),
]


def open_federation(given: Path | None, operator: Path | None = None) -> FederationFolder:
    """The federation in the folder `given`, else in the current folder or the only one below it;
    sessions with its server are those of the operator in the folder `operator`.

    Raises DeployError if there is none, or more than one, and for an operator who may open none.
    """
    found = _found(given)
    if operator is None:
        return found
    from fedsight.deploy.membership.operator_folder import act_as

    return act_as(found, operator)


def _found(given: Path | None) -> FederationFolder:
    from fedsight.deploy.membership.federation import FederationFolder

    if given is not None:
        return FederationFolder.open(given)
    here = Path.cwd()
    if _is_federation(here):
        return FederationFolder.open(here)
    found = sorted(path for path in here.iterdir() if _is_federation(path))
    if len(found) == 1:
        return FederationFolder.open(found[0])
    if found:
        names = ", ".join(path.name for path in found)
        raise DeployError(
            f"there are {len(found)} federations in {here}: {names}",
            f"choose one, for example: --federation {found[0].name}",
        )
    raise DeployError(
        f"there is no federation in {here}",
        "give its folder with --federation, or create one with: fedsight federation init NAME",
    )


def _is_federation(folder: Path) -> bool:
    """Whether it is an operator's folder; a site's owner may have an invitation too."""
    return (folder / "invitation.toml").is_file() and (folder / "admitted").is_dir()
