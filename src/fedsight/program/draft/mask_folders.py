"""Finds images and masks in folders side by side, and lists them for the source `masks`."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsight.core.errors import DataError
from fedsight.data.images.pixels import read_stored
from fedsight.data.layouts import Folders
from fedsight.data.listing import tree
from fedsight.data.parts import PartName, part_named
from fedsight.program.draft.base import Guess

_DRAWN = ("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth")
_CUT = ("ground_truth", "seg", "segmentation", "segmentations", "segmentationclass")
MASKS = frozenset((*_DRAWN, *_CUT))
IMAGES = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures")
)
_MARK = re.compile(r"[\s_.-]*(?:mask|masks|seg|segmentation|label|labels|labelids|gt)$", re.I)
_MOST = 64  # classes
_NO_LABEL = 255
_LEAST_PAIRED = 0.5  # share of the masks that must have an image, to be taken for masks


@dataclass(frozen=True)
class Pair:
    """An image and its mask, and what their folders say."""

    image: str
    mask: str
    site: str | None
    part: PartName | None


def mask_guess(root: Path, beside: Path) -> Guess | None:
    """Masks in folders, listed in a CSV that is to be written as `beside`; None without masks.

    Raises DataError for masks whose pixels stand for nothing that can be told.
    """
    files = {folders: found for folders, found in tree(root).items() if found}
    pairs, alone = _paired(files)
    if not pairs or len(pairs) < _LEAST_PAIRED * (len(pairs) + alone):
        return None
    reasons = [f"{len(pairs)} images have a mask with the same name"]
    if alone:
        reasons.append(f"{alone} images have no mask and are not listed")
    settings, said = _meaning(pairs)
    data = {"name": "masks", "path": beside, **settings}
    reasons += [said, f"the pairs are listed in {beside.name}"]
    return Guess("segment", data, tuple(reasons), {beside: _listed(pairs, beside.resolve().parent)})


def _paired(files: dict[Folders, list[str]]) -> tuple[list[Pair], int]:
    """Images with their masks, and how many images have none."""
    masks: dict[tuple[Folders, str], str] = {}
    images: list[tuple[Folders, str, str]] = []
    for folders, found in files.items():
        plain = tuple(one for one in folders if one.casefold() not in MASKS | IMAGES)
        in_masks = any(one.casefold() in MASKS for one in folders)
        stems = {Path(file).stem for file in found}
        for file in found:
            stem = Path(file).stem
            bare = _MARK.sub("", stem)
            if in_masks or (bare != stem and bare in stems):
                masks.setdefault((plain, stem), file)
                masks.setdefault((plain, bare), file)
            else:
                images.append((plain, stem, file))
    pairs, alone = [], 0
    # Beside its image (`benign/1.png`, `benign/1_mask.png`) a mask is in the folder of a class.
    apart = any(one.casefold() in MASKS for folders in files for one in folders)
    sited = apart and {len(_sites(plain)) for plain, _, _ in images} == {1}
    for plain, stem, file in images:
        mask = masks.get((plain, stem))
        if mask is None:
            alone += 1
            continue
        part = next((named for one in plain if (named := part_named(one))), None)
        pairs.append(Pair(file, mask, _sites(plain)[0] if sited else None, part))
    return pairs, alone


def _sites(folders: Folders) -> Folders:
    """The folders that name no part."""
    return tuple(one for one in folders if part_named(one) is None)


def _listed(pairs: Sequence[Pair], folder: Path) -> str:
    """The CSV, with paths relative to `folder`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    sited, parted = pairs[0].site is not None, pairs[0].part is not None
    columns = ["path", "mask", *(["site"] if sited else []), *(["split"] if parted else [])]
    table.writerow(columns)
    for pair in pairs:
        row = [_relative(pair.image, folder), _relative(pair.mask, folder)]
        row += [pair.site or ""] if sited else []
        row += [pair.part or ""] if parted else []
        table.writerow(row)
    return text.getvalue()


def _relative(file: str, folder: Path) -> str:
    path = Path(file)  # which may be a link itself, to a file of any name
    return os.path.relpath(path.parent.resolve() / path.name, folder)


def _meaning(pairs: Sequence[Pair]) -> tuple[dict[str, Any], str]:
    """The classes, and where needed their values or colours, from every mask's pixels."""
    values: set[int] = set()
    colours: set[int] = set()
    for pair in pairs:
        found, coloured = _pixels(Path(pair.mask))
        (colours if coloured else values).update(found)
        if len(values) > 256 or len(colours) > _MOST:
            break
    if colours and values:
        colours |= {value * 0x010101 for value in values}
    many = colours or values
    if len(many) > _MOST:
        raise DataError(
            f"'{pairs[0].mask}' and the other masks have {len(many)} or more different "
            f"{'colours' if colours else 'values'}: too many for classes",
            "save masks without smoothing, as PNG, the class of each pixel in its value or colour",
        )
    if len(many) < 2:
        raise DataError(
            f"'{pairs[0].mask}' and the other masks have one value in all pixels",
            "draw the objects in another value than the background",
        )
    return _coded(sorted(colours)) if colours else _numbered(sorted(values))


def _numbered(values: Sequence[int]) -> tuple[dict[str, Any], str]:
    """Settings for grey values or the numbers of a palette."""
    inside = [value for value in values if value != _NO_LABEL]
    plain = inside == list(range(len(inside))) and len(inside) > 1
    if plain:
        said = f"masks hold the class numbers 0 to {inside[-1]}"
        return {"classes": _names(len(inside))}, said
    names = _names(len(values))
    table = dict(zip(names, values, strict=True))
    said = f"masks hold the values {', '.join(map(str, values[:8]))}, one for each class"
    return {"classes": names, "values": table}, said


def _coded(colours: Sequence[int]) -> tuple[dict[str, Any], str]:
    names = _names(len(colours))
    table = {name: f"#{code:06x}" for name, code in zip(names, colours, strict=True)}
    said = f"masks hold {len(colours)} colours, one for each class"
    return {"classes": names, "colours": table}, said


def _names(count: int) -> list[str]:
    """Names for classes that the files do not name."""
    if count == 2:
        return ["background", "object"]
    return ["background", *(f"class_{number}" for number in range(1, count))]


def _of_palette(used: Any, palette: Any) -> Iterator[int]:
    """A palette's numbers, or its greys where it holds nothing else, as the source reads them."""
    grey = (palette == palette[:, :1]).all() and used[-1] < len(palette)
    greys = palette[used, 0] if grey else used
    return map(int, greys if len(np.unique(greys)) == len(used) else used)


def _pixels(file: Path) -> tuple[Iterator[int], bool]:
    """The different values (or colours, as 0xRRGGBB) of a mask, and whether they are colours."""
    try:
        stored = read_stored(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror}", "restore it") from error
    a = stored.values
    if stored.lossy:
        raise DataError(
            f"mask '{file}' is a JPEG or compressed like one, which changes values at edges",
            "save masks as PNG, from the original drawing",
        )
    if stored.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        a = a[..., :-1]
    if a.shape[2] == 3 and not (a == a[..., :1]).all():
        wide = a.astype(np.int64)
        codes = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
        return map(int, np.unique(codes)), True
    plain = a[..., 0]
    if stored.palette is not None:
        return _of_palette(np.unique(plain), stored.palette), False
    step = {"L;2": 85, "L;4": 17}.get(stored.raw, 1)  # Pillow stretches 2 and 4 bits
    return map(int, np.unique(plain // step)), False
