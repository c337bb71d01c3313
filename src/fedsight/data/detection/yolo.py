"""YOLO annotations: a text file for each image, a line for each object."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.detection.objects import Object
from fedsight.data.images.fit import Box
from fedsight.data.reading import file_text

_IMAGES = re.compile(r"(?:jpeg)?images", re.IGNORECASE)
NAMES = ("classes.txt", "obj.names")  # one class a line, by number


def read_names(folder: Path) -> tuple[str, ...] | None:
    """The class names in `folder`, in the order of their numbers; None without a file."""
    for name in NAMES:
        if (folder / name).is_file():
            lines = file_text(folder / name).splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return None


def read_yolo(
    path: Path,
    names: Sequence[str],
    size: tuple[int, int],
    keypoints: bool = False,
    shapes: bool = False,
) -> tuple[Object, ...]:
    """The objects of one image of `size` (width, height), boxes in its pixels.

    A line is a class number, then the centre, width and height as fractions of the image, or an
    outline: the x and y of three points or more (a turned box has four), of which the box around
    them is taken; with `shapes` it is kept, in pixels. With `keypoints`, points follow the box and
    are not read. A number without a name becomes a label outside any vocabulary. Raises DataError
    naming a line that is not of this form.
    """
    objects = []
    for number, line in enumerate(file_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        try:
            label, *values = map(float, words)
        except ValueError:
            label, values = -1.0, []
        sound = label >= 0 and label.is_integer() and all(map(math.isfinite, values))
        values = values[:4] if keypoints else values
        if not sound or len(values) < 4 or len(values) % 2:
            given = " (a confidence, as predictions have it?)" if len(words) == 6 else ""
            raise DataError(
                f"{where}: '{line.strip()[:60]}' is not a class number and a box or an outline"
                f"{given}",
                "write: class x y width height, or class x1 y1 x2 y2 x3 y3 ..., as fractions of "
                "the image",
            )
        index = int(label)
        name = names[index] if index < len(names) else f"#{index}"
        outline = len(values) > 4
        kept = outline and shapes
        shape = [value * size[place % 2] for place, value in enumerate(values)] if kept else None
        objects.append(Object(name, _box(values, size), where, outline=outline, shape=shape))
    return tuple(objects)


def _box(values: Sequence[float], size: tuple[int, int]) -> Box:
    """(left, top, right, bottom) in pixels, of a centre and sides or of an outline's points."""
    if len(values) > 4:
        across, down = values[0::2], values[1::2]
        width, height = size
        return (
            min(across) * width,
            min(down) * height,
            max(across) * width,
            max(down) * height,
        )
    x, y, w, h = values
    left, top = (x - w / 2) * size[0], (y - h / 2) * size[1]
    return (left, top, left + w * size[0], top + h * size[1])


def labels_of(image: Path, root: Path) -> Path | None:
    """The file of an image's lines: in `labels` for an image in `images`, or else beside it.

    Only `root` and folders below it are searched for the name `images` (in any case, also as
    `train_images` or `JPEGImages`). None if there is no file.
    """
    near = [*labels_beside(image, root), image.with_suffix(".txt")]
    options = [one.with_suffix(suffix) for suffix in (".txt", ".TXT") for one in near]
    return next((one for one in options if one.is_file()), None)


def labels_beside(image: Path, root: Path) -> list[Path]:
    """Where the lines of an image below a folder `images` are to be, the likeliest first."""
    above = root.parent
    if not image.is_relative_to(above):
        above = Path(image.anchor)
    below = image.relative_to(above).parts
    found = []
    for place in range(len(below) - 2, -1, -1):
        if _IMAGES.search(below[place]):
            for word in ("labels", "Labels", "LABELS"):
                parts = (*below[:place], _IMAGES.sub(word, below[place]), *below[place + 1 :])
                found.append((above / Path(*parts)).with_suffix(".txt"))
    return found
