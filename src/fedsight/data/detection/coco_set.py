"""COCO data sets in a folder: which JSON files are read, for which part, and where images lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.listing import is_there
from fedsight.data.parts import KNOWN, NAMES, PartName, named_in, part_named

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_MOST = 1000  # JSON files that are looked into: labelling tools write one for each image
_SHALLOW = ("*", "*/*", "*/*/*", "*/*/*/*")


@dataclass(frozen=True)
class CocoPart:
    """One JSON file, and the part that it is for."""

    file: Path
    part: PartName | None


def coco_files(root: Path) -> list[CocoPart]:
    """The COCO files at `root`, a JSON file or a folder that holds some; none if it holds none.

    The part is that of the file's name (`instances_val2017.json`) or of its folder
    (`valid/_annotations.coco.json`). Beside `instances_*` files, others (captions, key points) are
    not read. Raises DataError for several files of which one names no part, and for two files for
    one part.
    """
    if not root.is_dir():
        return [CocoPart(root, None)]
    files = sorted(_candidates(root))
    chosen = [one for one in files if one.stem.casefold().startswith("instances")] or files
    if len(chosen) < 2:
        return [CocoPart(one, None) for one in chosen]
    found: dict[PartName, Path] = {}
    for file in chosen:
        part = stated_part(file, root)
        if part is None:
            raise DataError(
                f"'{root}' has {len(chosen)} COCO files, and the name of '{file}' says no part",
                f"name its part ({KNOWN}), or give one file as data.path",
            )
        if part in found:
            raise DataError(
                f"'{found[part]}' and '{file}' are both for the {NAMES[part]} part",
                "move one of them elsewhere, or give one file as data.path",
            )
        found[part] = file
    return [CocoPart(file, part) for part, file in found.items()]


def stated_part(file: Path, root: Path) -> PartName | None:
    """The part that a COCO file's name says, or else the folder nearest to it below `root`."""
    if part := named_in(file.stem):
        return part
    folders = file.relative_to(root).parts[:-1]
    return next((part for one in reversed(folders) if (part := part_named(one))), None)


def unread(file: Path) -> tuple[str, ...]:
    """What to say about files of other parts beside a COCO file that is read alone."""
    if named_in(file.stem) is None:
        return ()
    others = [one for one in sorted(file.parent.glob("*.json")) if one != file]
    kind = file.stem.split("_")[0]
    beside = [one for one in others if named_in(one.stem) and one.stem.split("_")[0] == kind]
    return tuple(
        f"'{one.name}' beside '{file.name}' is not read; give it as data.test_path, or their "
        "folder as data.path"
        for one in beside
    )


def image_folders(file: Path, images: Path | None) -> list[Path]:
    """Where the images of a COCO file may lie, the likeliest first.

    Beside the file, in a folder that is called after its part (`train2017`), in `images` or, from
    `annotations`, one folder up.
    """
    words = [word for word in re.split(r"[\s_.]+", file.stem) if part_named(word)]
    tops = [images] if images is not None else [file.parent, file.parent.parent]
    found = []
    for top in tops:
        found += [top, *(top / word for word in words)]
        found += [top / "images", *(top / "images" / word for word in words)]
    return [one for one in dict.fromkeys(found) if one.is_dir()] or tops[:1]


def image_file(name: str, folders: Sequence[Path]) -> Path:
    """The image `name` in the first of `folders` that has it; in the first if none has."""
    return next((one / name for one in folders if is_there(one / name)), folders[0] / name)


def _candidates(root: Path) -> Iterator[Path]:
    """The JSON files below `root`, not too deep, with the keys of a COCO file."""
    looked = 0
    for pattern in _SHALLOW:
        for file in root.glob(pattern):
            if file.suffix.lower() != ".json" or not file.is_file() or looked >= _MOST:
                continue
            looked += 1
            if _is_coco(file):
                yield file


def _is_coco(file: Path) -> bool:
    """Whether a JSON file has the keys of a COCO file; the large ones are not parsed for that."""
    try:
        data = file.read_bytes()
    except OSError:
        return False
    return all(key in data for key in _KEYS)
