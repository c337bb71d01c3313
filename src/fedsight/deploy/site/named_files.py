"""Files that a proposed program names: a site opens none of them.

`without_files` takes the paths out of the settings that are known to be those of the coordinator's
files. Whatever else a program names is found here, in the program as it was read: in the settings
of a group's network, which are those of any network, and in those of parts from plug-ins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedsight.core.errors import DeployError
from fedsight.core.settings import Settings
from fedsight.deploy.declaration import ELSEWHERE
from fedsight.models.base import Model
from fedsight.program.program import Program

# Of their paths nothing is opened: a site's images are where its owner says, and a public set is
# built in (`public.elsewhere`).
NOT_OPENED = ("data", "public")


def refuse_files(program: Program, home: Path) -> None:
    """Raise DeployError, naming the setting, for a file that `program` names, as it was read at the
    site in `home`.

    It would be opened at this site, at the coordinator's bidding, and what is answered would tell
    of its content. Raises ConfigError for a group's network that does not exist.
    """
    for where in named(program, home):
        raise DeployError(
            f"{where} names a file, and this site opens none that a program names",
            f"leave out {where}, or try it in a simulation",
        )


def named(program: Program, home: Path) -> Iterator[str]:
    """The settings in which a program names a file, without those in `NOT_OPENED`."""
    nowhere = (Path(ELSEWHERE), home / ELSEWHERE)  # in place of the coordinator's own files
    sections = {item.name: getattr(program, item.name) for item in fields(program)}
    for number in range(len(program.model.groups)):  # whose networks inherit from [model]
        sections[f"model.groups.{number}"] = program.model.grouped(number)
    for section, settings in sections.items():
        if section not in NOT_OPENED:
            if isinstance(settings, Model) and settings.published is not None:
                # A name of a few that this package knows, whose files are in this machine's cache.
                settings = settings.model_copy(update={"weights": None})
            yield from (where for where, path in _paths(settings, section) if path not in nowhere)


def _paths(value: Any, where: str) -> Iterator[tuple[str, Path]]:
    """All paths in a value, and where they are."""
    if isinstance(value, Path):
        yield where, value
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Settings):
        inside = ((key, getattr(value, key)) for key in type(value).model_fields)
    elif isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, tuple | list | set | frozenset):
        inside = enumerate(value)
    for key, one in inside:
        yield from _paths(one, f"{where}.{key}")
