"""What reading the annotations of a folder or a file has given, and how two of them go together."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.detection.coco_set import coco_files
from fedsight.data.detection.objects import Annotated
from fedsight.data.detection.voc_sets import xml_files
from fedsight.data.detection.yolo import labels_beside
from fedsight.data.detection.yolo_set import YoloSet
from fedsight.data.images.formats import is_picture
from fedsight.data.listing import tree
from fedsight.data.parts import NAMES, PartName, part_named
from fedsight.data.passed_over import Tally, beside

WITHOUT = "images without annotations"
_ANNOTATIONS = frozenset(
    {".json", ".xml", ".txt", ".yaml", ".yml", ".names", ".data", ".cache", ".csv", ".md"}
)
_YOLO_FILES = ("data.y*ml", "classes.txt", "obj.names")
_OTHER_TEXTS = frozenset({"classes", "README", "readme", "notes", "predefined_classes"})


@dataclass(frozen=True)
class Found:
    """Images, the class names of the files, what to say, and files not read, by reason."""

    images: list[Annotated]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)


def format_of(root: Path) -> str:
    """The format of the annotations at `root`: coco, voc or yolo."""
    if root.is_file():
        return "yolo" if root.suffix.lower() in (".yaml", ".yml") else "coco"
    if xml_files(root):
        return "voc"
    if any(next(root.glob(one), None) for one in _YOLO_FILES):
        return "yolo"
    return "coco" if coco_files(root) else "yolo"


def is_yolo(root: Path) -> bool:
    """Whether a folder seems to have YOLO's files: a list of names, or texts called as images."""
    if any(next(root.glob(one), None) for one in (*_YOLO_FILES, "*/classes.txt")):
        return True
    stems = {Path(file).stem for files in tree(root).values() for file in files}
    return any(file.stem in stems for file in root.rglob("*.txt"))


def joined(train: Found, test: Found, path: Path) -> Found:
    """Both, where `test`, read from `path`, is the test part.

    Raises DataError where either states that part, or training images are in `test`.
    """
    stated = {image.part for image in train.images}
    if "test" in stated:
        raise DataError(
            "data.path has a test part, and data.test_path names another",
            "leave data.test_path out, or move the test part of data.path elsewhere",
        )
    if "train" in {image.part for image in test.images}:
        raise DataError(
            f"'{path}', the test part, has a training part in it",
            "set data.test_path to the folder of the test part, or leave it out",
        )
    rest = [replace(image, part=image.part or "train") for image in train.images]
    tested = [replace(image, part="test") for image in test.images]
    names = (*train.names, *(name for name in test.names if name not in train.names))
    counts = summed(train.passed_over, test.passed_over)
    return Found([*rest, *tested], names, (*train.notes, *test.notes), counts)


def refuse_overlap(path: Path, test_path: Path) -> None:
    """DataError if `test_path` is the same as `path`, by whatever name, or one holds the other."""
    real, other = path.resolve(), test_path.resolve()
    same = path.exists() and test_path.exists() and path.samefile(test_path)
    if same or real == other:
        how = "are the same"
    elif path.is_dir() and test_path.is_dir() and (real in other.parents or other in real.parents):
        how = "hold the same images: one is inside the other"
    elif path.is_file() and test_path.is_file() and filecmp.cmp(path, test_path, shallow=False):
        how = "have the same content"
    else:
        return
    raise DataError(
        f"data.path and data.test_path {how} ('{path}', '{test_path}')",
        "give the test part files of its own, or leave data.test_path out: a test part is then "
        "held out",
    )


def only_training(images: Sequence[Annotated]) -> bool:
    """Whether all of the images are stated to be for training."""
    return {image.part for image in images} == {"train"}


def without_labels(found: YoloSet, lines: Sequence[Path | None]) -> tuple[str, ...]:
    """What to say about images without a label file, which YOLO takes for background.

    Raises DataError for a part in which no image has one.
    """
    missing: dict[PartName | None, list[Path]] = {}
    count: dict[PartName | None, int] = {}
    for image, file in zip(found.images, lines, strict=True):
        count[image.part] = count.get(image.part, 0) + 1
        if file is None:
            missing.setdefault(image.part, []).append(image.path)
    for part, images in missing.items():
        if len(images) == count[part]:
            of = f" of the {NAMES[part]} part" if part else ""
            expected = [*labels_beside(images[0], found.root), images[0].with_suffix(".txt")][0]
            raise DataError(
                f"none of the {count[part]} images{of} has a label file: there is no '{expected}' "
                f"for '{images[0]}'",
                "restore the labels"
                + (", or take the images of this part out" if part else " beside the images"),
            )
    total = sum(map(len, missing.values()))
    if not total:
        return ()
    return (f"{total} of {len(lines)} images have no label file and count as background",)


def left_over(
    root: Path, images: Sequence[Annotated], labels: Sequence[Path] = ()
) -> dict[str, int]:
    """The files at `root`, and beside the images, that are neither images read nor annotations.

    By reason. `labels` are YOLO's files of lines that are read: others among them have no image.
    """
    used = {os.path.abspath(image.path) for image in images}  # noqa: PTH100
    read = {os.path.abspath(file) for file in labels}  # noqa: PTH100
    folders = {os.path.dirname(file) for file in read}  # noqa: PTH120
    if not root.is_dir():
        return beside(used, _ANNOTATIONS, WITHOUT).counts
    tally = Tally()

    def known(path: str) -> bool:
        real = os.path.abspath(path)  # noqa: PTH100
        stem, suffix = os.path.splitext(os.path.basename(real))  # noqa: PTH119, PTH122
        lonely = suffix.lower() == ".txt" and os.path.dirname(real) in folders  # noqa: PTH120
        if lonely and real not in read and stem not in _OTHER_TEXTS and part_named(stem) is None:
            tally.add(path, "label files without an image")
        elif real not in used and is_picture(path):
            tally.add(path, WITHOUT)
        else:
            return real in used or suffix.lower() in _ANNOTATIONS
        return True

    tree(root, known, tally)
    top = os.path.abspath(root)  # noqa: PTH100
    outside = [file for file in used if not Path(file).is_relative_to(top)]
    return summed(tally.counts, beside(outside, _ANNOTATIONS, WITHOUT).counts)


def summed(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason, added."""
    return {reason: one.get(reason, 0) + other.get(reason, 0) for reason in {**one, **other}}
