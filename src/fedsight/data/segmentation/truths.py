"""Where the class of each pixel is drawn: mask files beside images, or outlines in annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import DataError
from fedsight.core.files import content
from fedsight.data.assembly import Record
from fedsight.data.class_names import Similar, settled_names, used
from fedsight.data.detection.found import Found
from fedsight.data.images.decode import upright
from fedsight.data.images.mask_values import IGNORED, Coding, Numbers
from fedsight.data.segmentation.layers import Layer
from fedsight.data.segmentation.outlined import Canvas, Outside

Pixel = TypeVar("Pixel", bound=np.generic)


@dataclass(frozen=True)
class Truths:
    """Images, and how the class numbers of each are drawn at the size of its file [h, w]."""

    records: list[Record]
    classes: tuple[str, ...]  # the background first
    draw: Callable[[int], Numbers]  # of image number i; may raise DataError
    notes: Callable[[], tuple[str, ...]]  # what to say once all are drawn
    passed_over: Mapping[str, int] = field(default_factory=dict)


def of_files(records: Sequence[Record], masks: Sequence[Sequence[Layer]], code: Coding) -> Truths:
    """The truths in mask files, one or several for each record.

    Where masks of two classes overlap, the smaller one counts, as with outlines. Raises DataError
    if names say classes, and settings say what pixels stand for.
    """
    named = next((one for each in masks for one in each if one.label is not None), None)
    for key in ("values", "colours", "ignored"):
        if named is not None and getattr(code, key):
            raise DataError(
                f"data.{key} is set, but mask '{named.path}' says its class by its name",
                f"leave data.{key} out: what is not black in such a mask is of its class",
            )
    shared: list[int] = []  # of each image: pixels in masks of two classes

    def draw(index: int) -> Numbers:
        record, found = records[index], masks[index]
        if all(one.label is None for one in found):
            return _objects(record, [Path(one.path) for one in found], code)
        numbers, twice = _classes(record, found, code)
        shared.append(twice)
        return numbers

    def notes() -> tuple[str, ...]:
        count = sum(shared)
        said = f"{count:,} pixels lie in masks of two classes: the smaller mask counts"
        return (said,) if count else ()

    return Truths(list(records), code.classes, draw, notes)


def _objects(record: Record, paths: Sequence[Path], code: Coding) -> Numbers:
    """The mask of an image, or those of its objects joined.

    Raises DataError for one that lies mostly in others: objects do not.
    """
    numbers = _in_file(record, paths[0], code.numbers)
    for path in paths[1:]:
        more = _in_file(record, path, code.numbers)
        there = (more != 0) & (more != IGNORED)
        twice = there & (numbers != 0) & (numbers != IGNORED)
        if there.any() and twice.sum() * 2 > there.sum():
            raise DataError(
                f"{record.place}: mask '{path}' lies mostly in the other masks of its image, as "
                "if several people had drawn one object",
                "keep one drawing of each image: say how the names of those end with "
                "data.mask_suffix",
            )
        numbers = np.where(more != 0, more, numbers)
    return numbers


def _classes(record: Record, found: Sequence[Layer], code: Coding) -> tuple[Numbers, int]:
    """The class numbers in masks of one class each, and how many pixels two classes share."""
    shapes: dict[int, npt.NDArray[np.bool_]] = {}
    for one in found:
        assert one.label is not None  # `layers` gives every mask of an image a class, or none
        shape = _in_file(record, Path(one.path), code.shape)
        number = code.classes.index(one.label)
        shapes[number] = shapes[number] | shape if number in shapes else shape
    numbers = np.zeros_like(next(iter(shapes.values())), np.uint8)
    times = np.zeros_like(numbers)
    for number in sorted(shapes, key=lambda each: -int(shapes[each].sum())):
        numbers[shapes[number]] = number
        times += shapes[number]
    return numbers, int((times > 1).sum())


def _in_file(
    record: Record, path: Path, read: Callable[[bytes, str, str], npt.NDArray[Pixel]]
) -> npt.NDArray[Pixel]:
    try:
        data = content(path)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{record.place}: there is no mask '{path}' ({why or error})",
            "correct the path (relative to the CSV's folder) or remove the line",
        ) from error
    values = read(data, str(path), record.place)
    width, height = upright(record.path)
    if values.shape != (height, width):
        cure = "save the mask at the size of its image"
        if values.shape == (width, height):
            cure = "draw it on the upright image, turned as its EXIF orientation says"
        raise DataError(
            f"{record.place}: mask '{path}' has {values.shape[1]} x {values.shape[0]} pixels, "
            f"but its image has {width} x {height}",
            cure,
        )
    return values


def of_outlines(
    found: Found, classes: Sequence[str] | None, similar: Similar, outside: Outside
) -> Truths:
    """The truths in the outlines of COCO or YOLO; `classes` begins with the background.

    Without `classes`, they are the background and the files' own. Raises DataError for class names
    that are nearly equal, unless `similar` says what to do with them.
    """
    whole = tuple(classes or ("background", *(n for n in found.names if n != "background")))
    uses = used((one.label, one.where) for image in found.images for one in image.objects)
    read, notes = settled_names(uses, whole, similar, "objects")
    whole = tuple(name for name in whole if read[name] == name)
    images = [
        replace(image, objects=tuple(replace(o, label=read[o.label]) for o in image.objects))
        for image in found.images
    ]
    canvas = Canvas(whole, outside)
    records = [
        Record(image.path, "", image.site, image.part, image.where, image.group) for image in images
    ]

    def draw(index: int) -> Numbers:
        size = upright(images[index].path)
        if images[index].stated not in (None, size):
            stated = " x ".join(map(str, images[index].stated or ()))
            raise DataError(
                f"{images[index].where}: '{images[index].path}' has {size[0]} x {size[1]} pixels, "
                f"not {stated} as in the annotations",
                "annotate the upright image, turned as its EXIF orientation says",
            )
        return canvas.painted(images[index].objects, size)

    def said() -> tuple[str, ...]:
        objects = [one for image in images for one in image.objects]
        bare = sum(not image.objects for image in images)
        alone = (f"{bare:,} images have no object: all background",) if bare else ()
        return (*found.notes, *notes, *alone, *canvas.notes(objects))

    return Truths(records, whole, draw, said, found.passed_over)
