"""COCO annotation files: images, categories and boxes, read with every reference checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsight.core.errors import DataError
from fedsight.data.detection.outlines import around
from fedsight.data.mistaken import mistaken
from fedsight.data.parts import PartName, part_stated
from fedsight.data.reading import file_bytes

Id = int | str
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # as it is written; 007 is a text
MOST = 1e9  # pixels; NaN fails this too
_CURE = "correct the file, or export it again from the labelling tool"


@dataclass(frozen=True)
class CocoBox:
    """One annotated object: category name and [left, top, width, height] in pixels, if given.

    Without a box, that around the outline or mask is taken. `where` names the file and the entry.
    Where the caller checks boxes, an unknown category is called by its number and a box may have no
    area.
    """

    category: str
    box: tuple[float, float, float, float] | None = None
    crowd: bool = False
    where: str = ""
    outline: bool = False  # the box is that around a `segmentation`
    shape: Any = None  # the `segmentation` as it is written, where it was asked for


@dataclass(frozen=True)
class CocoImage:
    """One image of the file: name, size in pixels where given, and its objects."""

    file: str
    height: int | None
    width: int | None
    boxes: tuple[CocoBox, ...]
    site: str | None = None
    part: PartName | None = None  # what the key `split` states
    group: str | None = None


@dataclass(frozen=True)
class CocoFile:
    """The content of a COCO file; `categories` in the order of their ids."""

    images: tuple[CocoImage, ...]
    categories: tuple[str, ...]


def read_coco(
    path: Path,
    judged: bool = False,
    site_key: str | None = None,
    group_key: str | None = None,
    shapes: bool = False,
) -> CocoFile:
    """Parse a COCO JSON; `site_key` and `group_key` are keys of its image entries, if set.

    Ids are numbers or texts. Raises DataError, naming the entry at fault, for broken JSON, missing
    keys, ids used twice, references to unknown images or categories, and boxes that are not four
    finite numbers with positive sides. Unknown categories and boxes without area are accepted if
    `judged`, because the caller then checks them. With `shapes`, segmentations are kept.
    """
    data = _parsed(path)
    categories: dict[Id, str] = {}
    for where, entry in _entries(path, data, "categories"):
        number = _id(entry, "id", where)
        _unique(categories, number, where)
        categories[number] = _text(entry, "name", where)
    images: dict[Id, dict[str, Any]] = {}
    for where, entry in _entries(path, data, "images"):
        number = _id(entry, "id", where)
        _unique(images, number, where)
        images[number] = {
            "file": _text(entry, "file_name", where),
            "height": _number(entry, "height", where) if "height" in entry else None,
            "width": _number(entry, "width", where) if "width" in entry else None,
            "site": None if site_key is None else _text(entry, site_key, where),
            "part": part_stated(_text(entry, "split", where), where) if "split" in entry else None,
            "group": _group(entry, group_key),
        }
    if group_key is not None:
        _check_key(path, data["images"], group_key)
    boxes: dict[Id, list[CocoBox]] = {number: [] for number in images}
    for where, entry in _entries(path, data, "annotations"):
        image, category = _id(entry, "image_id", where), _id(entry, "category_id", where)
        for key, number, known in (("image", image, images), ("category", category, categories)):
            if number not in known and not (judged and key == "category"):
                raise DataError(f"{where}: there is no {key} with id {number!r}", _CURE)
        name, crowd = categories.get(category, str(category)), _crowd(entry, where)
        box, size = _box(entry, where, judged), (images[image]["height"], images[image]["width"])
        outline = judged and box is None and bool(entry.get("segmentation")) and not shapes
        if outline:
            box = around(entry["segmentation"], size, where)
        shape = (entry.get("segmentation") or None) if shapes else None
        boxes[image].append(CocoBox(name, box, crowd, where, outline, shape))
    numbered = all(isinstance(number, int) for number in categories)
    order = sorted(categories) if numbered else list(categories)
    names = tuple(categories[number] for number in order)
    if len(set(names)) < len(names):
        raise DataError(f"'{path}' has two categories with the same name", "rename or join them")
    return CocoFile(
        tuple(CocoImage(**image, boxes=tuple(boxes[i])) for i, image in images.items()), names
    )


def _parsed(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        data = json.loads(file_bytes(path, "set data.path to the COCO JSON"))
    except (ValueError, RecursionError) as error:
        if found := mistaken(path):
            raise DataError(f"'{path}' is {found[0]}, not a COCO file", found[1]) from error
        raise DataError(f"'{path}' is not JSON: {error}", _CURE) from error
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else "a single value"
        raise DataError(
            f"'{path}' is not a COCO file: its top level is {what}, not an object with images, "
            "annotations and categories",
            _CURE,
        )
    return data


def _entries(path: Path, data: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    entries = data.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"'{path}' has no list of objects '{key}'", _CURE)
    return [(f"{path}, {key}[{index}]", entry) for index, entry in enumerate(entries)]


def _number(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: '{key}' is {value!r}, not an integer", _CURE)
    return value


def _id(entry: dict[str, Any], key: str, where: str) -> Id:
    """An id: a number, or a text; a number that is written as text or with .0 is that number."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if _NUMBER.fullmatch(text) else text
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: '{key}' is {value!r}, neither an integer nor a text", _CURE)
    return value


def _crowd(entry: dict[str, Any], where: str) -> bool:
    value = entry.get("iscrowd")
    if value not in (None, 0, 1, "0", "1", "", "true", "false"):
        raise DataError(f"{where}: 'iscrowd' is {value!r}, neither 0 nor 1", _CURE)
    return value in (1, "1", "true")


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: '{key}' is {value!r}, not a name", _CURE)
    return value


def _group(entry: dict[str, Any], key: str | None) -> str | None:
    """The value of an entry's key, which may be a number; None for none."""
    value = None if key is None else entry.get(key)
    return None if value is None or value == "" else str(value)


def _check_key(path: Path, entries: list[dict[str, Any]], key: str) -> None:
    """DataError if no entry has a key."""
    if entries and not any(key in entry for entry in entries):
        found = ", ".join(sorted({str(one) for entry in entries for one in entry}))
        raise DataError(
            f"{path}: no entry of 'images' has the key '{key}' (found: {found})",
            "correct data.group",
        )


def _unique(known: dict[Id, Any], number: Id, where: str) -> None:
    if number in known:
        raise DataError(f"{where}: id {number!r} is used twice", _CURE)


def _box(
    entry: dict[str, Any], where: str, judged: bool
) -> tuple[float, float, float, float] | None:
    box = entry.get("bbox")
    if box is None or box == []:
        return None
    # JSON has integers of any size, and not all of them are floats.
    numbers = isinstance(box, list) and all(
        isinstance(value, int | float) and -MOST <= value <= MOST for value in box
    )
    if not numbers or len(box) != 4 or (min(box[2:]) <= 0 and not judged):
        raise DataError(
            f"{where}: bbox {box!r} is not [left, top, width, height] with positive sides", _CURE
        )
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
