"""Images that a file lists more than once: counted once, or refused with both entries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from fedsight.core.errors import DataError
from fedsight.data.base import Indices
from fedsight.data.groups import Grouped


class Entry(Grouped, Protocol):
    """What a file says of an image."""

    @property
    def site(self) -> str | None:
        """The site."""
        ...


def listed_once(records: Sequence[Entry], alike: Callable[[int, int], bool]) -> Indices:
    """The indices of the images, without entries that say the same of an image again.

    `alike` says whether the labels at two indices are the same. Raises DataError naming both
    entries if they give an image two labels, parts, sites or groups.
    """
    first: dict[str, int] = {}
    chosen: list[int] = []
    for index, record in enumerate(records):
        known = first.setdefault(os.path.normpath(record.path), index)
        # frames of one file have one path and one place
        if known == index or record.place == records[known].place:
            chosen.append(index)
        else:
            _check_same(records[known], record, alike(known, index))
    return np.array(chosen, dtype=np.int64)


def _check_same(one: Entry, other: Entry, alike: bool) -> None:
    """DataError unless two entries for one image say the same of it."""
    pairs = {
        "part": (one.part, other.part),
        "site": (one.site, other.site),
        "group": (one.group, other.group),
    }
    what = "label" if not alike else next((k for k, (a, b) in pairs.items() if a != b), None)
    if what is None:
        return
    said = {"label": (getattr(one, "label", ""), getattr(other, "label", "")), **pairs}[what]
    values = f": '{said[1]}' and '{said[0]}'" if said[0] != said[1] else ""
    several = "; several labels of an image belong in one entry" if what == "label" else ""
    raise DataError(
        f"{other.place}: lists '{other.path}' with another {what} than {one.place} does{values}",
        f"keep the right one of the two entries{several}",
    )
