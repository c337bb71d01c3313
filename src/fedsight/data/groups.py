"""Groups of images that belong together (a patient's, a product's, a video's), and their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from fedsight.core.errors import DataError
from fedsight.data.class_names import near_pairs, shown, stands_for_nothing
from fedsight.data.parts import NAMES, PartName

if TYPE_CHECKING:
    from fedsight.data.base import Dataset

HERE = "{group}"  # where the name of the group stands in a pattern
Overlap = Literal["error", "report"]
T = TypeVar("T", bound=Any)
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", HERE: "([^/]+?)"}
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\{group\}")
EXAMPLE = "'{group}_*' takes p1 from p1_2.png, and '**/{group}/*' the folder of an image"


class Grouped(Protocol):
    """What a source knows of an image."""

    @property
    def path(self) -> str:
        """The image."""
        ...

    @property
    def place(self) -> str:
        """What a message names."""
        ...

    @property
    def part(self) -> PartName | None:
        """The part that the source states."""
        ...

    @property
    def group(self) -> str | None:
        """What must stay together."""
        ...


def is_pattern(group: str | None) -> bool:
    """Whether `data.group` is a pattern over paths, and not the name of a column or key."""
    return group is not None and HERE in group


def column(group: str | None) -> str | None:
    """The name of the column or key that `data.group` gives, if it gives one."""
    return None if is_pattern(group) else group


def reader(pattern: str) -> Callable[[PurePath], str | None]:
    """Reads the name of the group out of a path relative to the root of the data.

    `*` stands for anything within a folder or file name, `?` for one character, `**` for any
    folders, `{group}` for the name, the shortest that fits. A pattern without a slash is compared
    with the file's name alone. Raises DataError if `{group}` is there more than once.
    """
    if pattern.count(HERE) != 1:
        raise DataError(f"data.group = '{pattern}' has {HERE} more than once", f"e.g. {EXAMPLE}")
    parts, at = [], 0
    for token in _TOKENS.finditer(pattern):
        parts += [re.escape(pattern[at : token.start()]), _WILD[token.group()]]
        at = token.end()
    expression = re.compile("".join([*parts, re.escape(pattern[at:])]), re.DOTALL)

    def read(path: PurePath) -> str | None:
        found = expression.fullmatch(path.as_posix() if "/" in pattern else path.name)
        return found.group(1) if found else None

    return read


def by_path(records: Sequence[T], group: str | None, root: Path) -> list[T]:
    """The records with their groups if `group` is a pattern, over paths relative to `root`.

    Raises DataError if it matches no path.
    """
    if group is None or not is_pattern(group):
        return list(records)
    read = reader(group)
    paths = [_relative(record.path, root) for record in records]
    found = [replace(record, group=read(path)) for record, path in zip(records, paths, strict=True)]
    if records and all(record.group is None for record in found):
        raise DataError(
            f"data.group = '{group}' matches none of the {len(records):,} images, "
            f"such as '{paths[0].as_posix()}'",
            f"correct the pattern: {EXAMPLE}",
        )
    return found


def need_pattern(group: str | None, what: str) -> None:
    """DataError if `group` names a column where there are none: in `what`."""
    if group is not None and not is_pattern(group):
        raise DataError(
            f"data.group = '{group}' names a column, but {what} have none",
            f"write a pattern over the paths: {EXAMPLE}",
        )


def _relative(path: str, root: Path) -> PurePath:
    try:
        return PurePath(path).relative_to(root)
    except ValueError:
        return PurePath(path)


def sentences(records: Sequence[Grouped], group: str | None) -> tuple[str, ...]:
    """What to say about the groups that `data.group` has given."""
    if group is None:
        return ()
    sizes = Counter(record.group for record in records)
    alone = sizes.pop(None, 0)
    said = f"data.group = '{group}' makes {len(sizes):,} groups"
    if sizes and max(sizes.values()) == 1:
        said += ", each of one image: it keeps nothing together"
    if alone:
        first = next(record.place for record in records if record.group is None)
        said += f"; {alone:,} images belong to none and count alone, such as '{first}'"
    notes = [said]
    if near := near_pairs(name for name in sizes if name is not None):
        one, other, how = near[0]
        more = f", and so do {len(near) - 1:,} more pairs" if len(near) > 1 else ""
        notes.append(
            f"groups {shown(one)} and {shown(other)} differ only {how}{more}: each is held out "
            "apart from the other"
        )
    notes += [
        f"group '{name}' ({count:,} images) stands for a missing value: its images stay together"
        for name, count in sizes.items()
        if name is not None and stands_for_nothing(name)
    ]
    return tuple(notes)


def at_two_sites(records: Sequence[Grouped], sites: Sequence[str] | None) -> tuple[str, ...]:
    """What to say about groups with images at two of the sites [n]."""
    homes: dict[str, set[str]] = {}
    for record, site in zip(records, () if sites is None else sites, strict=sites is not None):
        if record.group is not None:
            homes.setdefault(record.group, set()).add(site)
    wide = [name for name, found in homes.items() if len(found) > 1]
    if not wide:
        return ()
    return (f"groups with images at two sites: {len(wide):,}, for example '{wide[0]}'",)


def straddling(
    records: Sequence[Grouped], parts: Sequence[PartName], overlap: Overlap
) -> tuple[str, ...]:
    """What to say about groups that stand in two stated parts [n].

    Raises DataError naming one and how many there are, unless `overlap` allows it.
    """
    seen: dict[str, dict[PartName, Grouped]] = {}
    for record, part in zip(records, parts, strict=True):
        if record.group is not None:
            seen.setdefault(record.group, {}).setdefault(part, record)
    torn = [(name, found) for name, found in seen.items() if len(found) > 1]
    if not torn:
        return ()
    name, found = torn[0]
    order = sorted(found, key=list(NAMES).index)
    where = " and ".join(f"the {NAMES[part]} part ('{found[part].place}')" for part in order)
    count = f"{len(torn):,} of {len(seen):,} groups are in two parts"
    if overlap == "error":
        raise DataError(
            f"group '{name}' is in {where}; {count}",
            'move each group into one part, or allow it: data.group_overlap = "report"',
        )
    return (f"{count}, for example '{name}': what is tested on is not new to the model",)


@dataclass(frozen=True)
class GroupCounts:
    """How many groups a data set has."""

    groups: int
    across_parts: int
    across_sites: int
    largest: int  # images


def group_counts(dataset: Dataset) -> GroupCounts | None:
    """The groups of a data set in numbers; None if it has none."""
    parts: dict[str, set[int]] = {}
    sites: dict[str, set[str]] = {}
    sizes = Counter[str]()
    for number, part in enumerate((dataset.train, dataset.validation, dataset.test)):
        if part is None:
            continue
        for index, group in enumerate(part.groups or ()):
            if group is None:
                continue
            sizes[group] += 1
            parts.setdefault(group, set()).add(number)
            if part.sites is not None:
                sites.setdefault(group, set()).add(part.sites[index])
    if not sizes:
        return None
    torn = sum(len(found) > 1 for found in parts.values())
    wide = sum(len(found) > 1 for found in sites.values())
    return GroupCounts(len(sizes), torn, wide, max(sizes.values()))
