"""Test images as pictures for the report, at the resolution of their files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fedsight.data.base import Images
from fedsight.data.images.decode import full_size
from fedsight.data.images.disk import LazyImages, NamedArray
from fedsight.data.images.fit import Box, Placement
from fedsight.data.images.windowing import Reading
from fedsight.program.site_data import SiteData
from fedsight.tasks.presentation import Mark

LONGEST = 1024  # pixels of a picture's longer side; larger images are scaled down to it
LOSSLESS = 256 * 256  # pixels up to which a picture is stored without loss
_QUALITY = 88  # of larger ones, as JPEG
# Of areas that were found, missed and false: colour, opacity, and every how many diagonals.
_TINTS = (((0, 224, 160), 90, 1), ((255, 210, 63), 230, 3), ((255, 80, 70), 230, 2))


@dataclass(frozen=True)
class Picture:
    """A picture, and where what the network saw lies on it.

    `full` is (width, height) of the file if the picture is a smaller copy of it.
    """

    image: Image.Image
    placement: Placement | None
    scale: float  # pixels of the picture for each of the file
    full: tuple[int, int] | None

    def shown(self, box: Box) -> Box:
        """A box in the network's input as one on the picture, cut off at its edges."""
        if self.placement is not None:
            box = self.placement.backward(box)
        left, top, right, bottom = (side * self.scale for side in box)
        width, height = self.image.size
        return max(0.0, left), max(0.0, top), min(width, right), min(height, bottom)


def picture(data: SiteData, position: int) -> Picture:
    """The test image at `position` of a site's, with the shift that the site sees it with."""
    number, origin = int(data.indices[position]), int(data.origins[position])
    preprocess = _preprocess(data.part.images)
    whole = _whole(data.part.images, number)
    if whole is None or preprocess is None:
        return Picture(_image(data.pixels(torch.tensor([position]))[0]), None, 1.0, None)
    height, width = whole.shape[:2]
    small = _scaled(whole)
    pixels = torch.from_numpy(small).permute(2, 0, 1).float().div_(255)
    seen = data.view(pixels[None].clone(), origin, data.indices[[position]])[0]
    scale = small.shape[1] / width
    full = (width, height) if scale < 1 else None
    return Picture(_image(seen), Placement.of((width, height), preprocess), scale, full)


def beside(pictures: Sequence[Picture]) -> Picture:
    """Several pictures side by side, each as high as the highest; boxes are not kept."""
    if len(pictures) == 1:
        return pictures[0]
    high = max(one.image.height for one in pictures)
    mode = "L" if all(one.image.mode == "L" for one in pictures) else "RGB"
    scaled = [
        one.image.convert(mode).resize((round(one.image.width * high / one.image.height), high))
        for one in pictures
    ]
    canvas = Image.new(mode, (sum(image.width for image in scaled), high))
    left = 0
    for image in scaled:
        canvas.paste(image, (left, 0))
        left += image.width
    return Picture(canvas, None, 1.0, None)


def plain(found: Picture) -> dict[str, Any]:
    """A picture as plain values: its file in base64, its size, and the size of the original."""
    file = io.BytesIO()
    width, height = found.image.size
    if width * height <= LOSSLESS:
        found.image.save(file, "PNG")
    else:
        found.image.save(file, "JPEG", quality=_QUALITY)
    return {
        "image": base64.b64encode(file.getvalue()).decode(),
        "width": width,
        "height": height,
        "full": found.full,
    }


def plain_mark(mark: Mark, found: Picture) -> dict[str, Any]:
    """A mark as plain values, in pixels of the picture."""
    box = found.shown(mark.box)
    return {"box": box, "label": mark.label, "kind": mark.kind, "score": mark.score}


def plain_areas(areas: Tensor, found: Picture) -> dict[str, Any]:
    """Areas [h, w] of the network's input as a transparent picture, and its place on the other.

    The kinds differ in colour and in hatching: plain, sparse diagonals, dense diagonals.
    """
    numbers = areas.numpy()
    rows, columns = np.indices(numbers.shape)
    tinted = np.zeros((*numbers.shape, 4), np.uint8)
    for kind, (colour, opacity, every) in enumerate(_TINTS, 1):
        chosen = numbers == kind
        tinted[chosen] = (*colour, 60 if every > 1 else opacity)
        tinted[chosen & ((rows + columns) % every == 0)] = (*colour, opacity)
    file = io.BytesIO()
    Image.fromarray(tinted).save(file, "PNG")
    height, width = numbers.shape
    whole = (0.0, 0.0, float(width), float(height))
    box = whole if found.placement is None else found.placement.backward(whole)
    return {
        "image": base64.b64encode(file.getvalue()).decode(),
        "box": [side * found.scale for side in box],
    }


def _files(images: Images) -> LazyImages | None:
    found = images.files if isinstance(images, NamedArray) else images
    return found if isinstance(found, LazyImages) else None


def _preprocess(images: Images) -> Any:
    found = _files(images)
    return None if found is None else found.preprocess


def _whole(images: Images, number: int) -> npt.NDArray[np.uint8] | None:
    """The image in its file [h, w, c], 8 bits; None if it has no file of its own."""
    found = _files(images)
    if found is None:
        return None
    reading = found.preprocess.dicom or Reading()
    pixels = full_size(found.origin(number), reading, found.name(number))
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    if found.preprocess.channels == 1 and colours.shape[2] == 3:
        grey = Image.fromarray(np.ascontiguousarray(colours)).convert("L")
        colours = np.asarray(grey)[..., None]
    return np.asarray(colours, dtype=np.uint8)


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    share = LONGEST / max(height, width)
    if share >= 1:
        return np.array(pixels)
    image = Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    )
    size = (max(1, round(width * share)), max(1, round(height * share)))
    small = np.array(image.resize(size, Image.Resampling.LANCZOS))
    return small if small.ndim == 3 else small[..., None]


def _image(pixels: Tensor) -> Image.Image:
    """An image [c, h, w] in [0, 1]; of other than one or three channels the first."""
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    shown = values if values.shape[2] == 3 else values[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(shown))
