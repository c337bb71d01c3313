"""Several mask files of one image: one for each class that their names say, or for each object."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.layouts import Folders
from fedsight.data.segmentation.folder_words import role_of, without_mask_end

_BETWEEN = re.compile(r"[\s_.-]+")
_NUMBER = re.compile(r"[\s_.-]*\d{1,4}$")  # of an object: x_mask0, x_12
_JOINING = re.compile(r"[\s_.-]+(?:attribute|class|lesion|object)$", re.IGNORECASE)
_LISTED = re.compile(r"^\d+[.)\s_-]+")  # 1. Microaneurysms
_MOST = 64  # classes that names may say


@dataclass(frozen=True)
class Layer:
    """A mask file, and the class that its name or folder says; None: its pixels say it."""

    path: str
    label: str | None = None


class ClassNames:
    """Finds the names of classes in those of mask files and of their folders."""

    def __init__(self, classes: Sequence[str] | None) -> None:
        """`classes` begin with the background, which has no mask file."""
        self.few = classes is None or len(classes) == 2  # one class, or not known
        self._names = {_plain(name): name for name in (classes or ())[1:]}

    def in_folders(self, folders: Folders) -> tuple[str | None, Folders]:
        """The class that one of the folders is called after, and the others."""
        for at, name in enumerate(folders):
            label = self._names.get(_plain(name)) or self._names.get(_plain(_LISTED.sub("", name)))
            if label is not None:
                return label, (*folders[:at], *folders[at + 1 :])
        return None, folders

    def in_stem(self, stem: str) -> tuple[str, str] | None:
        """What a mask's name says before the name of its class, and the class: `x_CLASS`,
        `x_mask_CLASS`, `x_CLASS_mask`, `x_CLASS_3`. None if it names no class."""
        for whole in dict.fromkeys((stem, without_mask_end(stem), without_number(stem))):
            for found in _BETWEEN.finditer(whole):
                label = self._names.get(_plain(whole[found.end() :]))
                if label is not None and found.start():
                    return _without_joining(whole[: found.start()]), label
        return None


def without_number(stem: str) -> str:
    """A mask's name without the number of an object."""
    return _NUMBER.sub("", stem)


def layers(image: str, masks: Sequence[Layer], names: ClassNames, lone: bool) -> tuple[Layer, ...]:
    """The mask files of an image, of one class each or of one object each.

    `lone`: the image has a folder of its own, where the masks may be called anything. Raises
    DataError where it is not clear what several masks are.
    """
    labelled = [one for one in masks if one.label is not None]
    if len(masks) < 2 or len(labelled) == len(masks):
        return tuple(masks)
    alike = len({without_number(Path(one.path).stem) for one in masks}) == 1
    if not labelled and names.few and (alike or lone):
        return tuple(masks)
    if not labelled and alike:
        shown = " and ".join(f"'{Path(one.path).name}'" for one in masks[:3])
        raise DataError(
            f"'{image}' has {len(masks)} masks, of which only the numbers differ: {shown}; with "
            "several classes these do not say which class each shows",
            "name the class in the file (NAME_CLASS.png) or its folder (masks/CLASS/NAME.png), or "
            "join them into one with the class of each pixel",
        )
    raise _several(image, [one.path for one in masks])


def _several(image: str, masks: Sequence[str]) -> DataError:
    shown = " and ".join(f"'{Path(mask).name}'" for mask in masks[:3])
    stems = [Path(mask).stem for mask in masks]
    same = 0
    while len({stem[: same + 1] for stem in stems}) == 1 and same < min(map(len, stems)):
        same += 1
    common = re.split(r"[\s_.-]+[^\s_.-]*$", stems[0][:same])[0]
    ends = " or ".join(f"'{stem.removeprefix(common)}'" for stem in stems[:3])
    return DataError(
        f"'{image}' has {len(masks)} masks: {shown}",
        "join them into one with the class of each pixel, or say how the names of those that count "
        f"end: data.mask_suffix = {ends}",
    )


def notes(found: Iterable[Sequence[Layer]]) -> tuple[str, ...]:
    """What to say about the mask files of all images."""
    counts = Counter[str]()
    joined = 0
    for one in found:
        counts.update({layer.label for layer in one if layer.label is not None})
        joined += len(one) > 1 and all(layer.label is None for layer in one)
    said = []
    if counts:
        listed = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        said.append(
            f"images with a mask of each class: {listed}; without one, an image has no pixel of it"
        )
    if joined:
        said.append(f"{joined:,} images have several masks, one for each object: they are joined")
    return tuple(said)


def classes_said(root: Path, images: Sequence[str], masks: Sequence[str]) -> tuple[str, ...]:
    """The classes that the names of `masks`, or their folders, seem to say; empty if one of them
    belongs to none of the `images`, and says none."""
    stems = {Path(image).stem for image in images}
    found: dict[str, str] = {}
    for mask in masks:
        path = Path(mask)
        name = _ending(path.stem, stems)
        if name is None and path.stem in stems:
            _, left = role_of(path.relative_to(root).parts[:-1])
            name = _LISTED.sub("", left[-1]) if left else None
        if not name:
            return ()
        found.setdefault(_plain(name), name)
    return tuple(found[plain] for plain in sorted(found)) if len(found) <= _MOST else ()


def _ending(stem: str, images: set[str]) -> str | None:
    """What a mask's name says after that of its image, without an object's number."""
    for whole in (without_mask_end(without_number(stem)), without_number(stem), stem):
        for found in reversed(list(_BETWEEN.finditer(whole))):
            if whole[: found.start()] in images:
                words = _BETWEEN.split(whole[found.end() :])
                kept = words[1:] if len(words) > 1 and _JOINING.match(f"_{words[0]}") else words
                name = "_".join(kept)
                return name if not name.isdigit() else None
    return None


def _without_joining(stem: str) -> str:
    return _JOINING.sub("", without_mask_end(stem)) or stem


def _plain(name: str) -> str:
    """A name for comparing: case, Unicode form and what stands between words do not count."""
    return " ".join(_BETWEEN.split(unicodedata.normalize("NFC", name).casefold())).strip()
