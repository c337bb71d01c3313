"""Pascal VOC annotations: an XML file for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from fedsight.core.errors import DataError
from fedsight.data.detection.objects import Annotated, Object
from fedsight.data.images.fit import Box
from fedsight.data.reading import file_bytes

_CURE = "correct the file, or export it again from the labelling tool"
_NO, _YES = ("0", "false", "no", "", "unspecified"), ("1", "true", "yes")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path, first_pixel: int = 1) -> tuple[str, Annotated]:
    """The image's file name, and its objects with `path` empty.

    `first_pixel` is the number of the leftmost and topmost pixel: 1 in Pascal VOC, whose boxes
    include their last pixel; 0 in tools that write edges (Everingham et al., VOC2012 devkit).
    Raises DataError naming the object for broken XML and missing or unreadable values.
    """
    try:
        root = ElementTree.fromstring(file_bytes(path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"'{path}' is not XML: {error}", _CURE) from error
    name = (root.findtext("filename") or "").strip()
    objects = []
    for number, entry in enumerate(root.iter("object")):
        where = f"{path}, object {number + 1}"
        label = (entry.findtext("name") or "").strip()
        if not label:
            raise DataError(f"{where} has no name", _CURE)
        hard = (entry.findtext("difficult") or "0").strip().lower()
        if hard not in _NO and hard not in _YES:
            raise DataError(f"{where}: difficult is '{hard}', neither 0 nor 1", _CURE)
        box = _box(entry, where, first_pixel)
        objects.append(Object(label, box, where, difficult=hard in _YES))
    size = root.find("size")
    stated = None if size is None else _stated(size, path)
    return name, Annotated("", tuple(objects), str(path), stated)


def refuse_zeros(images: Sequence[Annotated]) -> None:
    """DataError for boxes that start at pixel 0, which images `read_voc` from 1 do not have.

    Judged over all images together, since in a wide image one pixel may pass for rounding.
    """
    objects = [(one, image.stated) for image in images for one in image.objects]
    zeros = [one for one, _ in objects if any(-1 <= side < 0 for side in one.box[:2])]
    if not zeros:
        return
    ends = any(size and (o.box[2] >= size[0] or o.box[3] >= size[1]) for o, size in objects)
    beside = "" if ends else ", and none reaches the last pixel"
    raise DataError(
        f"{zeros[0].where}: its box starts at pixel 0; so do {len(zeros)} of {len(objects)} boxes"
        f"{beside}, but Pascal VOC counts from 1",
        "set data.first_pixel = 0 if the files count from 0, or data.first_pixel = 1 and "
        "data.outside = 'clip' if these boxes are mistakes",
    )


def _box(entry: Element, where: str, first_pixel: int) -> Box:
    values = []
    if entry.find("bndbox") is None and entry.find("robndbox") is not None:
        raise DataError(
            f"{where}: it is a turned box (robndbox), which is not read", "export upright boxes"
        )
    for side in _SIDES:
        text = entry.findtext(f"bndbox/{side}")
        value = _number(text)
        if value is None:
            raise DataError(f"{where}: {side} is {text!r}, not a number", _CURE)
        values.append(value)
    left, top, right, bottom = values
    return (left - first_pixel, top - first_pixel, right, bottom)


def _stated(size: Element, path: Path) -> tuple[int, int] | None:
    width, height = _number(size.findtext("width")), _number(size.findtext("height"))
    if width is None or height is None:
        raise DataError(f"'{path}': the image's size is not two numbers", _CURE)
    return (int(width), int(height)) if width and height else None  # 0 is written for unknown


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
