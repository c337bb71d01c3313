"""Finds images and masks in folders side by side, and what the pixels of the masks stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsight.core.errors import DataError
from fedsight.data.images.pixels import read_stored
from fedsight.data.reading import file_bytes
from fedsight.data.segmentation.layers import classes_said
from fedsight.data.segmentation.pairs import Pair, pairs_in, sites_in
from fedsight.program.draft.base import Guess

_MOST = 64  # classes
_NO_LABEL = 255
_LEAST_PAIRED = 0.5  # share of the images that must have a mask, to be taken for segmentation


def mask_guess(root: Path) -> Guess | None:
    """Masks in folders; None without masks.

    Raises DataError for masks whose pixels stand for nothing that can be told, and as `pairs_in`
    does.
    """
    found = pairs_in(root)
    said: tuple[str, ...] = ()
    if not found.pairs and (said := classes_said(root, found.images, found.masks)):
        found = pairs_in(root, classes=("background", *said))
    paired, lonely = len(found.pairs), len(found.images)
    if not paired or paired < _LEAST_PAIRED * (paired + lonely):
        return None
    reasons = [f"{paired} images have a mask with the same name"]
    if said:
        settings: dict[str, Any] = {"classes": ["background", *said]}
        meaning = f"the names of masks say the classes: {', '.join(said)}"
    else:
        settings, meaning = _meaning(found.pairs)
    data: dict[str, Any] = {"name": "masks", "path": root, **settings}
    apart = {Path(pair.image).parent for pair in found.pairs}.isdisjoint(
        Path(mask.path).parent for pair in found.pairs for mask in pair.masks
    )
    # Beside its image (`benign/1.png`, `benign/1_mask.png`) a mask is in the folder of a class.
    if apart and sites_in(found.pairs):
        data["sites_in_path"] = True
    if lonely or found.masks:
        data["unpaired"] = "skip"
        reasons.append(
            f"{lonely} images have no mask and {len(found.masks)} masks no image: left out"
        )
    return Guess("segment", data, (*reasons, meaning))


def _meaning(pairs: Sequence[Pair]) -> tuple[dict[str, Any], str]:
    """The classes, and where needed their values or colours, from every mask's pixels."""
    values: set[int] = set()
    colours: set[int] = set()
    masks = [Path(mask.path) for pair in pairs for mask in pair.masks]
    for mask in masks:
        found, coloured = _pixels(mask)
        (colours if coloured else values).update(found)
        if len(values) > 256 or len(colours) > _MOST:
            break
    if colours and values:
        colours |= {value * 0x010101 for value in values}
    many = colours or values
    if len(many) > _MOST:
        raise DataError(
            f"'{masks[0]}' and the other masks have {len(many)} or more different "
            f"{'colours' if colours else 'values'}: too many for classes",
            "save masks without smoothing, as PNG, the class of each pixel in its value or colour",
        )
    if len(many) < 2:
        raise DataError(
            f"'{masks[0]}' and the other masks have one value in all pixels",
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
    stored = read_stored(file_bytes(file), str(file))
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
