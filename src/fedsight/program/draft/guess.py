"""Guesses what a folder or file of images holds: the task, the source, parts and sites."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from fedsight.core.errors import DataError
from fedsight.data.base import SizedSource, Source, sources
from fedsight.data.class_names import says_order
from fedsight.data.detection.coco import read_coco
from fedsight.data.detection.coco_set import coco_files
from fedsight.data.detection.voc_sets import xml_files
from fedsight.data.images.formats import is_picture
from fedsight.data.layouts import Folders, arranged
from fedsight.data.listing import tree
from fedsight.data.mistaken import mistaken
from fedsight.program.draft.base import TABLES, Asked, Found, Guess, no_images
from fedsight.program.draft.mask_folders import mask_guess
from fedsight.program.draft.tables import table_guess
from fedsight.program.locate import build, holds_dicom

_YOLO_FILES = ("data.yaml", "data.yml", "classes.txt", "obj.names", "*/classes.txt", "obj.data")
_YOLO_LINE = re.compile(r"\d+(?:\s+[\d.eE+-]+){4,}\s*")
_FACES = re.compile(r"(?<![a-z])(?:faces?|people|persons?|lfw|orl|celeba?|identities)(?![a-z])")
_FULL_NAME = re.compile(r"[A-Z][\w'.-]*[a-z](?:[ _][A-Z][\w'.-]*)+")
_MOST_OF_PERSON = 30  # images, in the middle
_LEAST_PEOPLE = 4
_SHARED = 0.5  # of the folders' names must be in several folders above, to be classes of sites


def look(path: Path, asked: Asked) -> Found:
    """What `path` holds, opened without decoding its images.

    Raises DataError with culprit and cure if it holds nothing that can be trained on, or not what
    was asked for.
    """
    if not path.exists():
        raise DataError(f"'{path}' does not exist", "give the folder of the images")
    guess = _of_folder(path, asked) if path.is_dir() else _of_file(path, asked)
    if asked.task == "ordinal" and guess.task == "classify":
        guess = replace(guess, task="ordinal")
    if asked.task not in (None, guess.task):
        raise DataError(
            f"'{path}' seems to be for the task '{guess.task}', not for '{asked.task}' "
            f"({'; '.join(guess.reasons)})",
            f"leave --task out, or arrange the images for '{asked.task}': see "
            "docs/how-to/own-data.md",
        )
    if asked.classes is not None:
        guess = replace(guess, data={**guess.data, "classes": list(asked.classes)})
    found = Found(guess, _trial(guess.data).open())
    return _in_order(found, path) if guess.task == "ordinal" else found


def _trial(data: Mapping[str, Any]) -> Source:
    """The source, which opens without decoding the images."""
    settings = {key: value for key, value in data.items() if key != "name"}
    if issubclass(sources.get(data["name"]), SizedSource):
        settings = {**settings, "in_memory": False, "verify": False}
    return build(sources, data["name"], settings)


def _in_order(found: Found, path: Path) -> Found:
    """Grades need an order, which words do not have."""
    classes = found.opened.classes
    stated = found.guess.data.get("classes")
    if stated is None and not found.opened.ordered and not says_order(classes):
        raise DataError(
            f"'{path}': the order of the grades is not known ({', '.join(classes)})",
            "name them, the lowest first: --classes " + ",".join(classes),
        )
    data = {**found.guess.data, "classes": list(stated or classes)}
    return replace(found, guess=replace(found.guess, data=data))


def _of_file(path: Path, asked: Asked) -> Guess:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return table_guess(path, asked)
    if asked.task == "segment" and suffix in (".json", ".yaml", ".yml"):
        return Guess("segment", {"name": "masks", "path": path}, ("outlines of objects",))
    if suffix == ".json":
        return _coco([path], path, asked)
    if suffix in (".yaml", ".yml"):
        return Guess("detect", {"name": "boxes", "path": path}, ("a data.yaml as YOLO has it",))
    if suffix == ".npz":
        return Guess("classify", {"name": "medmnist", "path": path}, ("arrays as in MedMNIST",))
    if found := mistaken(path):
        raise DataError(f"'{path}' is {found[0]}", found[1])
    raise no_images(path, "is not a folder, a CSV, a COCO JSON, a data.yaml or a MedMNIST .npz")


def _of_folder(path: Path, asked: Asked) -> Guess:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        data = {"name": "huggingface", "path": path}
        return Guess("classify", data, ("a saved data set of Hugging Face",))
    if any(path.glob("*-idx[13]-ubyte*")):
        return Guess("classify", {"name": "idx", "path": path}, ("IDX files",))
    if asked.task == "segment":
        return _segments(path)
    if xml_files(path):
        data = {"name": "boxes", "path": path}
        return Guess("detect", data, ("XML files as Pascal VOC has them",))
    if asked.task in (None, "detect") and (yolo := _yolo(path)) is not None:
        return yolo
    if asked.task in (None, "detect", "classify") and (found := coco_files(path)):
        return _coco([one.file for one in found], path, asked)
    if asked.task is None and (masks := mask_guess(path)) is not None:
        return masks
    files = {folders: found for folders, found in tree(path).items() if found}
    if not files or all(not folders for folders in files):
        return _of_listing(path, files, asked)
    return _class_folders(path, files, asked)


def _segments(path: Path) -> Guess:
    """Masks in folders, or outlines of COCO or YOLO; what is wrong with them is said on opening."""
    if (masks := mask_guess(path)) is not None:
        return masks
    return Guess("segment", {"name": "masks", "path": path}, ("outlines, or images and masks",))


def _of_listing(path: Path, files: Mapping[Folders, Sequence[str]], asked: Asked) -> Guess:
    """A folder whose images lie in no folder of their own: a CSV must say what they show."""
    tables = [one for one in sorted(path.iterdir()) if one.suffix.lower() in TABLES]
    if len(tables) == 1:
        return table_guess(tables[0], asked)
    if len(tables) > 1:
        listed = ", ".join(one.name for one in tables[:5])
        raise DataError(
            f"'{path}' has {len(tables)} tables ({listed})", "give the CSV that lists the images"
        )
    if holds_dicom(path):
        return _class_folders(path, {}, asked)
    if not files:
        suffixes = sorted({one.suffix.lower() for one in path.rglob("*") if one.is_file()} - {""})
        seen = f" (files found: {', '.join(suffixes[:8])})" if suffixes else " (it is empty)"
        raise no_images(path, f"there are no images in it{seen}")
    count = len(files[()])
    raise no_images(path, f"its {count} images lie side by side, and nothing says what they show")


def _class_folders(path: Path, files: Mapping[Folders, Sequence[str]], asked: Asked) -> Guess:
    """A folder per class, or per person, perhaps in one per site."""
    name = "dicom" if holds_dicom(path) else "folder"
    tables = [one for one in sorted(path.iterdir()) if one.suffix.lower() in TABLES]
    if len(tables) == 1 and (listed := _listed(tables[0], asked)) is not None:
        return listed
    by_site = _sites(path, list(files)) if files else False
    depth = 2 if by_site else 1
    layout = arranged(files, path, depth, exact=True)
    counts: dict[Folders, int] = {}
    for folders, found in files.items():
        left = layout.places[folders].folders
        counts[left] = counts.get(left, 0) + len(found)
    names = sorted({left[-1] for left in counts if left})
    if len(names) == 1:
        raise no_images(path, f"all images lie in '{names[0]}', and nothing says what they show")
    reasons = [f"{len(names)} folders of images: {', '.join(names[:5])}"] if names else []
    task = asked.task
    if task is None and (why := _like_people(path, names, list(counts.values()))):
        task, reasons = "faces", [*reasons, why]
    data: dict[str, Any] = {"name": "people" if task == "faces" else name, "path": path}
    if by_site:
        sites = sorted({left[0] for left in counts if len(left) == depth})
        reasons.append(f"{len(sites)} sites: {', '.join(sites[:5])}")
        data["sites_in_path"] = True
    return Guess("faces" if task == "faces" else "classify", data, tuple(reasons))


def _listed(table: Path, asked: Asked) -> Guess | None:
    """What a CSV beside folders says, if it lists images; None if it is about something else."""
    try:
        return table_guess(table, asked)
    except DataError:
        return None


def _sites(path: Path, folders: Sequence[Folders]) -> bool:
    """Whether class folders lie in folders of sites: the same names in several of these.

    Raises DataError for folders in folders whose names are not shared: classes with a folder for
    each patient or product look so, too.
    """
    layout = arranged(folders, path, 2, exact=True)
    left = [layout.places[one].folders for one in folders]
    if not any(len(one) > 1 for one in left):
        return False
    tops: dict[str, set[str]] = {}
    for one in left:
        if len(one) == 2:
            tops.setdefault(one[1], set()).add(one[0])
    above = {one[0] for one in left if one}
    shared = [name for name, over in tops.items() if len(over) > 1]
    if len(above) == 1:
        return False  # a folder around everything
    if len(shared) >= _SHARED * len(tops):
        return True
    example = next(one for one in left if len(one) > 1)
    raise DataError(
        f"'{path}' has folders in folders whose names are not shared (such as "
        f"'{'/'.join(example)}'), so they cannot be told from classes",
        "for classes at sites, give the folders inside each site's folder the names of the "
        "classes; for classes with a folder of each patient or product, move the images up, or "
        "list them in a CSV with columns path and label",
    )


def _like_people(path: Path, names: Sequence[str], counts: Sequence[int]) -> str | None:
    """Why folders seem to be those of people; None if they do not."""
    if len(names) < _LEAST_PEOPLE or median(counts) > _MOST_OF_PERSON:
        return None
    if _FACES.search(path.resolve().name.casefold()):
        return f"'{path.name}' with few images in each folder: a person each"
    full = [name for name in names if _FULL_NAME.fullmatch(name)]
    if len(full) > 0.8 * len(names):
        return f"the folders are called as people are ('{full[0]}')"
    return None


def _yolo(path: Path) -> Guess | None:
    """YOLO's text files; where no file names the classes, their numbers do."""
    reason = "text files as YOLO has them"
    if any(next(path.glob(pattern), None) for pattern in _YOLO_FILES):
        return Guess("detect", {"name": "boxes", "path": path}, (reason,))
    pictures = {Path(file).stem for found in tree(path).values() for file in found}
    numbers: set[int] = set()
    for file in sorted(path.rglob("*.txt")):
        if file.stem not in pictures:
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        full = [line for line in lines if line.strip()]
        if not all(map(_YOLO_LINE.fullmatch, full)):
            return None
        numbers |= {int(line.split()[0]) for line in full}
    if not numbers:
        return None
    names = [f"class_{number}" for number in range(max(numbers) + 1)]
    data = {"name": "boxes", "path": path, "classes": names, "missing": "allow"}
    return Guess("detect", data, (reason, "no file names the classes: they are numbered"))


def _coco(files: Sequence[Path], path: Path, asked: Asked) -> Guess:
    """Boxes if the annotations have some, else one category per image."""
    found = [image for file in files for image in read_coco(file).images]
    boxed = any(box.box is not None for image in found for box in image.boxes)
    if asked.task == "classify" or (asked.task is None and not boxed):
        return Guess("classify", {"name": "coco", "path": path}, ("COCO, a category per image",))
    return Guess("detect", {"name": "boxes", "path": path}, ("boxes as COCO has them",))


def images_of(found: Found) -> list[str]:
    """The paths of the training images; none where they are not files."""
    images = found.opened.train.images
    origin = getattr(images, "origin", None)
    if not callable(origin):
        return []
    paths = (origin(index) for index in range(len(images)))
    return [one for one in paths if isinstance(one, str) and is_picture(one)]
