"""Images and their masks in folders, found by the names of both, as public data sets have them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedsight.core.errors import DataError
from fedsight.data.detection.voc_sets import ImageSets, sets_above
from fedsight.data.layouts import Folders, Place, arranged
from fedsight.data.listing import tree
from fedsight.data.parts import PartName, named_in
from fedsight.data.passed_over import Tally, cures
from fedsight.data.segmentation.folder_words import (
    image_stems,
    is_other,
    mask_stems,
    role_of,
    without_parts,
)
from fedsight.data.single_draws import refuse_other_tests

Unpaired = Literal["error", "skip"]
Key = tuple[Folders, str]  # what an image and its mask have in common
NO_MASK, NO_IMAGE, OTHER = "images without a mask", "masks without an image", "other drawings"
UNLISTED = "in no image set"


@dataclass(frozen=True)
class Pair:
    """An image and its mask, the folders that say neither, and the part if one is stated."""

    image: str
    mask: str
    folders: Folders
    part: PartName | None = None


@dataclass(frozen=True)
class Pairs:
    """What was found in a folder; `images` and `masks` are those without their counterpart."""

    pairs: list[Pair]
    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def settled(self, root: Path, unpaired: Unpaired) -> Pairs:
        """With what has no counterpart counted; DataError for it unless `unpaired` is "skip"."""
        if not self.pairs:
            raise no_pairs(
                root, f"no image has a mask ({len(self.images)} images, {len(self.masks)} masks)"
            )
        lonely = ((self.images, "image", "mask"), (self.masks, "mask", "image"))
        said = [
            f"{len(alone)} {what}{'s have' if len(alone) > 1 else ' has'} no {other} "
            f"(such as '{alone[0]}')"
            for alone, what, other in lonely
            if alone
        ]
        if said and unpaired == "error":
            raise DataError(
                f"'{root}': {' and '.join(said)}",
                "restore them, or leave them out: data.unpaired = 'skip'",
            )
        more = {NO_MASK: len(self.images), NO_IMAGE: len(self.masks)}
        counts = {**self.passed_over, **{key: count for key, count in more.items() if count}}
        found = replace(self, passed_over=dict(sorted(counts.items())))
        if {pair.part for pair in found.pairs} != {"train"}:
            return found
        refuse_other_tests(str(root), "test images would be drawn from the others")
        note = "no image for testing has a mask: test images are drawn from the others"
        pairs = [replace(pair, part=None) for pair in found.pairs]
        return replace(found, pairs=pairs, notes=(*found.notes, note))


def no_pairs(root: Path, why: str) -> DataError:
    """The error for a folder in which no masks are found."""
    return DataError(
        f"'{root}': {why}",
        "put masks into a folder 'masks' beside 'images', with the images' names; or beside each "
        "image as NAME_mask.png; or list them in a CSV with columns path and mask",
    )


@dataclass
class _Files:
    """The files of a folder, by what they are."""

    images: list[tuple[Folders, str]] = field(default_factory=list)  # other folders, file
    masks: dict[Key, list[str]] = field(default_factory=dict)
    others: int = 0
    loose: bool = False  # of the folders only the part counts

    def of(self, folders: Folders, image: str) -> list[str]:
        """The masks that belong to an image, by its name or that without an image's ending."""
        for stem in image_stems(Path(image).stem):
            if found := self.masks.get(self._key(folders, stem)):
                return list(found)
        return []

    def add(self, folders: Folders, stem: str, mask: str) -> None:
        """A mask of the image that is called `stem`."""
        self.masks.setdefault(self._key(folders, stem), []).append(mask)

    def loosened(self) -> _Files:
        """With folders of which only the part counts, if otherwise no image has a mask.

        `train_Input` and `train_GroundTruth` differ in more than what they say of their files.
        """
        loose = _Files(self.images, {}, self.others, loose=True)
        names = {loose._key(folders, Path(image).stem) for folders, image in self.images}
        paired = any(self.of(folders, image) for folders, image in self.images)
        if paired or len(names) < len(self.images):
            return self
        for (folders, stem), masks in self.masks.items():
            for mask in masks:
                loose.add(folders, stem, mask)
        return loose

    def _key(self, folders: Folders, stem: str) -> Key:
        if self.loose:
            parts = [part for one in folders if (part := named_in(one))]
            return tuple(parts[:1]), stem
        return tuple(one.casefold() for one in folders), stem


def pairs_in(root: Path, suffix: str | None = None, levels: int = 0) -> Pairs:
    """The images below `root` with their masks.

    Masks lie in a folder of their own (`images/train` beside `masks/train`, `img_dir` beside
    `ann_dir`, `train` beside `train_masks`, `leftImg8bit` beside `gtFine`, `JPEGImages` beside
    `SegmentationClass`), or beside the image (`x_mask.png`). `suffix` is the end of a mask's name,
    where there are several for an image. The parts are those of folders, else of VOC's image sets.
    `levels` is how many folders (a site's) must be left. Raises DataError for two masks of an
    image, and as `layouts.arranged` does.
    """
    tally = Tally()
    found = {folders: files for folders, files in tree(root, tally=tally).items() if files}
    files = _sorted_out(found, suffix)
    if not files.masks:  # folders of classes, perhaps
        return Pairs([], [image for _, image in files.images])
    known: dict[Path, ImageSets | None] = {}
    listed: set[tuple[Path, str]] = set()
    layout = arranged([folders for folders, _ in files.images], root, levels, exact=False)
    pairs, alone, used, unlisted = [], [], set[str](), set[str]()
    for folders, image in files.images:
        masks = files.of(folders, image)
        place = layout.places[folders]
        if place.part is None:
            place, here = _listed(place, Path(image), root, known, listed)
            if not here:
                unlisted |= {image, *masks}
                continue
        chosen = [one for one in masks if not is_other(Path(one).stem)] or masks
        if len(chosen) > 1:
            raise _several(image, chosen)
        used.update(masks)
        files.others += len(masks) - len(chosen)
        if chosen:
            pairs.append(Pair(image, chosen[0], place.folders, place.part))
        else:
            alone.append(image)
    _refuse_unfound(known, listed)
    every = dict.fromkeys(mask for masks in files.masks.values() for mask in masks)
    lonely = [mask for mask in every if mask not in used | unlisted]
    sets = sorted(str(base) for base, one in known.items() if one is not None)
    notes = (*layout.notes, *(f"parts as the image sets of '{base}' say" for base in sets))
    counts = {**tally.counts, OTHER: files.others, UNLISTED: len(unlisted)}
    counts = {reason: count for reason, count in counts.items() if count}
    return Pairs(pairs, alone, lonely, (*notes, *cures(counts)), counts)


def _sorted_out(found: Mapping[Folders, Sequence[str]], suffix: str | None) -> _Files:
    """Images and masks apart, masks by the names that their images may have."""
    files = _Files()
    for folders, here in found.items():
        role, rest = role_of(folders)
        stems = {Path(file).stem for file in here}
        for file in here:
            stem = Path(file).stem
            if role == "other":
                files.others += 1
                continue
            names = mask_stems(stem, role == "mask")
            is_mask = role == "mask" or any(name in stems for name in names)
            if suffix is not None:
                ends = stem.endswith(suffix) and len(stem) > len(suffix)
                names = mask_stems(stem.removesuffix(suffix), alone=True)
                files.others += is_mask and not ends
                if is_mask and not ends:
                    continue
                is_mask = ends
            if not is_mask:
                files.images.append((rest, file))
            for name in names if is_mask else ():
                files.add(rest, name, file)
    return files.loosened()


def _several(image: str, masks: Sequence[str]) -> DataError:
    shown = " and ".join(f"'{Path(mask).name}'" for mask in masks[:3])
    stems = [Path(mask).stem for mask in masks]
    same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*stems, strict=False))
    common = re.split(r"[\s_.-]+[^\s_.-]*$", "".join(each[0] for each in same))[0]
    ends = " or ".join(f"'{stem.removeprefix(common)}'" for stem in stems[:3])
    return DataError(
        f"'{image}' has {len(masks)} masks: {shown}",
        "join them into one with the class of each pixel, or say how the names of those that count "
        f"end: data.mask_suffix = {ends}",
    )


def _listed(
    place: Place,
    image: Path,
    root: Path,
    known: dict[Path, ImageSets | None],
    listed: set[tuple[Path, str]],
) -> tuple[Place, bool]:
    """The place of an image as image sets above it say, and whether they list it.

    Raises DataError for a listed name that two images have.
    """
    base = sets_above(image, root, known, "segmentation")
    sets = None if base is None else known[base]
    if base is None or sets is None:
        return place, True
    part = sets.parts.get(image.stem)
    if part is None:
        return place, False
    if (base, image.stem) in listed:
        raise DataError(
            f"{sets.lines[image.stem]}: '{image.stem}' is the name of two images below '{base}'",
            "give every image a name of its own",
        )
    listed.add((base, image.stem))
    return replace(place, part=part), True


def _refuse_unfound(known: Mapping[Path, ImageSets | None], listed: set[tuple[Path, str]]) -> None:
    """DataError for a line of an image set that names no image."""
    for base, sets in known.items():
        for name, line in (sets.lines if sets is not None else {}).items():
            if (base, name) not in listed:
                raise DataError(
                    f"{line}: there is no image '{name}' below '{base}'",
                    "restore it, or remove the line",
                )


def sites_in(pairs: Sequence[Pair]) -> bool:
    """Whether the folders of images and masks seem to lie in a folder for each site."""
    return {len(without_parts(pair.folders)) for pair in pairs} == {1}
