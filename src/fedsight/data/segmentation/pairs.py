"""Images and their masks in folders, found by the names of both, as public data sets have them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
    without_mask_end,
    without_parts,
)
from fedsight.data.segmentation.layers import (
    ClassNames,
    Layer,
    classes_said,
    layers,
    notes,
    without_number,
)
from fedsight.data.single_draws import refuse_other_tests

Unpaired = Literal["error", "skip"]
Key = tuple[Folders, str]  # what an image and its mask have in common
NO_MASK, NO_IMAGE, OTHER = "images without a mask", "masks without an image", "other drawings"
UNLISTED = "in no image set"


@dataclass(frozen=True)
class Pair:
    """An image and its mask files, the folders that say neither, and the part if one is stated."""

    image: str
    masks: tuple[Layer, ...]
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
            cause = f"no image has a mask ({len(self.images)} images, {len(self.masks)} masks)"
            if said := classes_said(root, self.images, self.masks):
                listed = json.dumps(["background", *said], ensure_ascii=False)
                raise DataError(
                    f"'{root}': {cause}; the names of the masks seem to say classes",
                    f"name those, so that the masks are found: data.classes = {listed}",
                )
            raise no_pairs(root, cause)
        lonely = ((self.images, "image", "mask"), (self.masks, "mask", "image"))
        lacking = [
            f"{len(alone)} {what}{'s have' if len(alone) > 1 else ' has'} no {other} "
            f"(such as '{alone[0]}')"
            for alone, what, other in lonely
            if alone
        ]
        if lacking and unpaired == "error":
            raise DataError(
                f"'{root}': {' and '.join(lacking)}",
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
    # masks whose names go on with a class or a number after that of the image
    layered: dict[Key, list[Layer]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # the class that a mask's folder says
    others: int = 0
    loose: bool = False  # of the folders only the part counts

    def of(self, folders: Folders, image: str) -> list[str]:
        """The masks that belong to an image, by its name or that without an image's ending."""
        for stem in image_stems(Path(image).stem):
            if found := self.masks.get(self._key(folders, stem)):
                return list(found)
        return []

    def further(self, folders: Folders, image: str, taken: set[str]) -> list[Layer]:
        """The masks of single classes or objects of an image that are not `taken` as another's."""
        stems = image_stems(Path(image).stem)
        found = [one for stem in stems for one in self.layered.get(self._key(folders, stem), ())]
        return [one for one in dict.fromkeys(found) if one.path not in taken]

    def add(self, folders: Folders, stem: str, mask: str) -> None:
        """A mask of the image that is called `stem`."""
        self.masks.setdefault(self._key(folders, stem), []).append(mask)

    def add_layer(self, folders: Folders, stem: str, layer: Layer) -> None:
        """A mask of one class or object of the image that is called `stem`."""
        self.layered.setdefault(self._key(folders, stem), []).append(layer)

    def lone(self) -> dict[Key, list[str]]:
        """The masks of each folder that has a single image."""
        images = Counter(self._key(folders, "") for folders, _ in self.images if folders)
        found: dict[Key, dict[str, None]] = {}
        for (folders, _), masks in self.masks.items():
            if images[folders, ""] == 1:
                found.setdefault((folders, ""), {}).update(dict.fromkeys(masks))
        return {key: list(masks) for key, masks in found.items()}

    def loosened(self) -> _Files:
        """With folders of which only the part counts, if otherwise no image has a mask.

        `train_Input` and `train_GroundTruth` differ in more than what they say of their files.
        """
        loose = _Files(self.images, labels=self.labels, others=self.others, loose=True)
        names = {loose._key(folders, Path(image).stem) for folders, image in self.images}
        paired = any(
            self.of(folders, image) or self.further(folders, image, set())
            for folders, image in self.images
        )
        if paired or self.lone() or len(names) < len(self.images):
            return self
        for (folders, stem), masks in self.masks.items():
            for mask in masks:
                loose.add(folders, stem, mask)
        for (folders, stem), layered in self.layered.items():
            for layer in layered:
                loose.add_layer(folders, stem, layer)
        return loose

    def _key(self, folders: Folders, stem: str) -> Key:
        if self.loose:
            parts = [part for one in folders if (part := named_in(one))]
            return tuple(parts[:1]), stem
        return tuple(one.casefold() for one in folders), stem


def pairs_in(
    root: Path,
    suffix: str | None = None,
    levels: int = 0,
    classes: Sequence[str] | None = None,
) -> Pairs:
    """The images below `root` with their masks.

    Masks lie in a folder of their own (`images/train` beside `masks/train`, `img_dir` beside
    `ann_dir`, `train` beside `train_masks`, `leftImg8bit` beside `gtFine`, `JPEGImages` beside
    `SegmentationClass`), or beside the image (`x_mask.png`). An image may have a mask for each of
    the `classes` (`x_CLASS.png`, `masks/CLASS/x.png`), or of the one class for each object
    (`x_mask_1.png`). `suffix` is the end of a mask's name, where there are several for an image.
    The parts are those of folders, else of VOC's image sets. `levels` is how many folders (a
    site's) must be left. Raises DataError for masks of an image of which it is not clear what they
    are, and as `layouts.arranged` does.
    """
    tally, names = Tally(), ClassNames(classes)
    found = {folders: files for folders, files in tree(root, tally=tally).items() if files}
    files = _sorted_out(found, suffix, names)
    if not files.masks and not files.layered:  # folders of classes, perhaps
        return Pairs([], [image for _, image in files.images])
    known: dict[Path, ImageSets | None] = {}
    listed: set[tuple[Path, str]] = set()
    layout = arranged([folders for folders, _ in files.images], root, levels, exact=False)
    pairs, alone, used, unlisted = [], [], set[str](), set[str]()
    for folders, image, masks, is_lone in _with_masks(files):
        place = layout.places[folders]
        paths = [one.path for one in masks]
        if place.part is None:
            place, here = _listed(place, Path(image), root, known, listed)
            if not here:
                unlisted |= {image, *paths}
                continue
        chosen = [one for one in masks if not is_other(Path(one.path).stem)] or masks
        used.update(paths)
        files.others += len(masks) - len(chosen)
        if chosen:
            theirs = layers(image, chosen, names, is_lone)
            pairs.append(Pair(image, theirs, place.folders, place.part))
        else:
            alone.append(image)
    _refuse_unfound(known, listed)
    every = dict.fromkeys(mask for masks in files.masks.values() for mask in masks)
    every |= dict.fromkeys(one.path for masks in files.layered.values() for one in masks)
    lonely = [mask for mask in every if mask not in used | unlisted]
    sets = sorted(str(base) for base, one in known.items() if one is not None)
    said = (*layout.notes, *(f"parts as the image sets of '{base}' say" for base in sets))
    said = (*said, *notes(pair.masks for pair in pairs))
    counts = {**tally.counts, OTHER: files.others, UNLISTED: len(unlisted)}
    counts = {reason: count for reason, count in counts.items() if count}
    return Pairs(pairs, alone, lonely, (*said, *cures(counts)), counts)


def _with_masks(files: _Files) -> Iterator[tuple[Folders, str, list[Layer], bool]]:
    """Each image with its masks, and whether these are all that lie in a folder of its own."""
    whole = [(folders, image, files.of(folders, image)) for folders, image in files.images]
    taken = {mask for _, _, masks in whole for mask in masks}
    found = [
        [
            *(Layer(mask, files.labels.get(mask)) for mask in masks),
            *files.further(folders, image, taken),
        ]
        for folders, image, masks in whole
    ]
    lone = {} if any(found) else files.lone()
    for (folders, image, _), masks in zip(whole, found, strict=True):
        apart = lone.get((tuple(one.casefold() for one in folders), ""), [])
        yield folders, image, masks or [Layer(mask) for mask in apart], bool(apart)


def _sorted_out(
    found: Mapping[Folders, Sequence[str]], suffix: str | None, names: ClassNames
) -> _Files:
    """Images and masks apart, masks by the names that their images may have."""
    files = _Files()
    said = {folders: role_of(folders) for folders in found}
    marked = any(role == "image" for role, _ in said.values())
    for folders, here in found.items():
        role, rest = said[folders]
        label = None
        if suffix is None and (role == "mask" or (role is None and marked)):
            label, rest = names.in_folders(rest)
            role = role if label is None else "mask"
        stems = {Path(file).stem for file in here}
        for file in here:
            stem = Path(file).stem
            if role == "other":
                files.others += 1
                continue
            plain = mask_stems(stem, role == "mask")
            is_mask = role == "mask" or any(name in stems for name in plain)
            if suffix is not None:
                ends = stem.endswith(suffix) and len(stem) > len(suffix)
                plain = mask_stems(stem.removesuffix(suffix), alone=True)
                files.others += is_mask and not ends
                if is_mask and not ends:
                    continue
                is_mask = ends
            elif role != "image" and (
                layered := _layered(stem, stems if role is None else None, label, names)
            ):
                files.add_layer(rest, layered[0], Layer(file, layered[1]))
                is_mask = True
            if not is_mask:
                files.images.append((rest, file))
                continue
            if label is not None:
                files.labels[file] = label
            for name in plain:
                files.add(rest, name, file)
    return files.loosened()


def _layered(
    stem: str, beside: set[str] | None, label: str | None, names: ClassNames
) -> tuple[str, str | None] | None:
    """What the image is called of which a file shows one class or object, and the class if one is
    said; None if its name does not go on like that.

    `beside`: the names of all files where images and masks lie together; None: only masks do.
    """
    said = None if label is not None else names.in_stem(stem)
    if said is not None and (beside is None or said[0] in beside):
        return said
    if beside is None and (plain := without_number(stem)) not in ("", stem):
        return without_mask_end(plain), label
    return None


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
    places = [without_parts(pair.folders) for pair in pairs]
    return {len(place) for place in places} == {1} and len(set(places)) < len(places)
