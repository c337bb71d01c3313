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
from fedsight.models.base import Model
from fedsight.models.published import PUBLISHED
from fedsight.program.program import Program

ELSEWHERE = "at-the-coordinator"  # in place of the path of a file that only the coordinator has
FILES = (  # settings with paths of files that only the coordinator has, by section and key
    ("model", "weights"),
    ("algorithm", "earlier"),
    ("start", "earlier"),
    ("finish", "earlier"),
    ("participation", "file"),
)
# Of their paths nothing is opened: a site's images are where its owner says, and a public set is
# built in (`public.elsewhere`).
NOT_OPENED = ("data", "public")


def without_files(program: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a proposed program, whatever paths it names for files of the coordinator's.

    A program with weights looks into their file for the norms that they need, and one that changes
    an earlier run's sums into the file beside them. A site that did so would open any of its files,
    or wait for any of its devices, at the coordinator's bidding, and its answer would tell what is
    there.
    """
    found = dict(program)
    for section, key in FILES:
        own = found.get(section)
        if isinstance(own, dict) and own.get(key) is not None:
            named = section == "model" and str(own[key]) in PUBLISHED  # and so no file
            found[section] = own if named else {**own, key: ELSEWHERE}
    return found


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
            if isinstance(settings, Model) and _is_published(settings, program.model):
                settings = settings.model_copy(update={"weights": None})
            yield from (where for where, path in _paths(settings, section) if path not in nowhere)


def _is_published(model: Model, of_all: Model) -> bool:
    """Whether a network starts from published weights, in this machine's cache: those of the
    program's network, as a group may have no others."""
    return model.fits_published and model.weights == of_all.weights


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
