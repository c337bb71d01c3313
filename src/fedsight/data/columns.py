"""Columns of tables under the names that people give them, and those that say parts unread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.parts import NAMES, are_parts, named_in, part_named

# columns that name a patient, a video and the like: patient_id, SubjectID, case
_GROUPS = re.compile(
    r"(?:patient|subject|case|donor|participant|person|group|video|clip|sequence|scene|product|lot"
    r"|batch|specimen|slide|animal|plant|eye|study)s?[ _-]?(?:id|name|number|no|nr|key)?",
    re.IGNORECASE,
)
_MOST = 8  # different values of a column that says parts


def recognised(row: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The row with columns called by `names` where they differ in case or blanks: `Split`."""
    missing = {name.casefold(): name for name in names if name not in row}
    return {
        key if key in names else missing.get(key.strip().casefold(), key): value
        for key, value in row.items()
    }


@dataclass
class UnreadParts:
    """Watches the columns that are not read for one that says the parts: `subset`, `fold`."""

    used: Sequence[str]
    _values: dict[str, set[str]] = field(default_factory=dict)

    def look(self, row: Mapping[str, str]) -> None:
        """Remember the values of a row."""
        for column, value in row.items():
            if column not in self.used:
                seen = self._values.setdefault(column, set())
                if len(seen) <= _MOST:
                    seen.add(value.strip())

    def refuse(self, path: Path, cure: str) -> None:
        """DataError for a column whose values are all names of parts, `train` among them."""
        for column, values in self._values.items():
            if are_parts(values) and all(map(part_named, values)):
                said = ", ".join(sorted(values))
                raise DataError(
                    f"{path}, line 1: column '{column}' says the parts ({said}), but is not read",
                    cure.format(column=column),
                )


def unread_groups(columns: Iterable[str], group: str | None) -> tuple[str, ...]:
    """What to say about a column that seems to name what belongs together, but is not read."""
    if group is not None:
        return ()
    found = [one for one in columns if _GROUPS.fullmatch(one.strip())]
    return tuple(
        f"column '{one}' is not read; data.group = '{one}' keeps its images in one part"
        for one in found
    )


def unread_beside(path: Path) -> tuple[str, ...]:
    """What to say about files of other parts beside one that is read alone: `test.csv`."""
    if named_in(path.stem) != "train":
        return ()
    others = [one for one in sorted(path.parent.glob(f"*{path.suffix}")) if one != path]
    found = [
        (one.name, part) for one in others if (part := named_in(one.stem)) not in (None, "train")
    ]
    return tuple(
        f"'{name}' beside '{path.name}', which seems to be the {NAMES[part]} part, is not read; "
        "join the files and say the part in a column 'split'"
        for name, part in found
        if part is not None
    )
