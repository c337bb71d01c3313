"""Where the class of each pixel is drawn: mask files beside images, or outlines in annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.class_names import Similar, settled_names, used
from fedsight.data.detection.found import Found
from fedsight.data.images.decode import upright
from fedsight.data.images.mask_values import Coding, Numbers
from fedsight.data.segmentation.outlined import Canvas, Outside


@dataclass(frozen=True)
class Truths:
    """Images, and how the class numbers of each are drawn at the size of its file [h, w]."""

    records: list[Record]
    classes: tuple[str, ...]  # the background first
    draw: Callable[[int], Numbers]  # of image number i; may raise DataError
    notes: Callable[[], tuple[str, ...]]  # what to say once all are drawn
    passed_over: Mapping[str, int] = field(default_factory=dict)


def of_files(records: Sequence[Record], masks: Sequence[Path], code: Coding) -> Truths:
    """The truths in mask files, one for each record."""

    def draw(index: int) -> Numbers:
        return _in_file(records[index], masks[index], code)

    return Truths(list(records), code.classes, draw, tuple)


def _in_file(record: Record, path: Path, code: Coding) -> Numbers:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{record.place}: there is no mask '{path}' ({why or error})",
            "correct the path (relative to the CSV's folder) or remove the line",
        ) from error
    values = code.numbers(data, str(path), record.place)
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
