"""Explanations drawn on their image: one panel for the image, one for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fedsight.data.images.fit import Placement
from fedsight.evaluation.fonts import font_for, plain
from fedsight.evaluation.marks import MIN_SIDE, marked
from fedsight.tasks.presentation import Mark

MOST_SIDE = 512  # pixels of a panel's longer side
BRIGHTEST = 0.99  # of the pixels are not hotter than what is brightest: single ones hide the rest
HIGH, GAP = 18, 4  # pixels of a caption, and between panels
_RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def panels(
    image: Image.Image,
    heats: Mapping[str, Tensor],
    placement: Placement | None = None,
    marks: tuple[Mark, ...] = (),
) -> Image.Image:
    """The image, and beside it for each name its heat [h, w] over the image in grey.

    Bright is what speaks for the answer; what speaks against it is not coloured. `placement` is
    that of the image in the network's input, which the heat is of; None: they are the same.
    `marks` are in pixels of the image, and are drawn on it.
    """
    large, times = _sized(image)
    shown = [
        replace(mark, box=tuple(side * times for side in mark.box))  # type: ignore[arg-type]
        for mark in marks
    ]
    found = [("", marked(large, shown))]
    grey = np.asarray(large.convert("L"), dtype=np.float32)
    for name, heat in heats.items():
        found.append((name, _over(grey, _placed(heat, image.size, large.size, placement))))
    return captioned(found)


def captioned(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, as high as the first, each below its caption."""
    sized = [(caption, _sized(one)[0]) for caption, one in pictures]
    height, left = sized[0][1].height, 0
    fitted = [
        (caption, one.resize((max(1, round(one.width * height / one.height)), height)))
        for caption, one in sized
    ]
    width = sum(one.width + GAP for _, one in fitted) - GAP
    canvas = Image.new("RGB", (width, height + HIGH), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for caption, one in fitted:
        canvas.paste(one, (left, HIGH))
        draw.text((left + 2, 2), caption, fill=(0, 0, 0), font=font_for(not plain(caption)))
        left += one.width + GAP
    return canvas


def _sized(image: Image.Image) -> tuple[Image.Image, float]:
    """The image in colours, enlarged by a whole factor or made smaller, and by how much."""
    times = MIN_SIDE / max(image.size)
    times = math.ceil(times) if times > 1 else min(1.0, MOST_SIDE / max(image.size))
    if times == 1:
        return image.convert("RGB"), 1.0
    size = (max(1, round(image.width * times)), max(1, round(image.height * times)))
    rule = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, rule), times


def _placed(
    heat: Tensor, whole: tuple[int, int], size: tuple[int, int], placement: Placement | None
) -> npt.NDArray[np.float32]:
    """Heat from 0 to 1 for each pixel [h, w] of a picture; 0 where the network sees nothing."""
    low, high = max(0.0, float(heat.min())), float(heat.float().flatten().quantile(BRIGHTEST))
    scaled = ((heat - low) / max(high - low, 1e-12)).clamp(0, 1)
    source = Image.fromarray(scaled.to(torch.float32).cpu().numpy())
    box = (0.0, 0.0, float(heat.shape[1]), float(heat.shape[0]))
    if placement is not None:  # the network's input, in pixels of the whole image
        box = placement.backward(box)
    share = size[0] / whole[0], size[1] / whole[1]
    left, top, right, bottom = (round(side * share[at % 2]) for at, side in enumerate(box))
    canvas = Image.new("F", size, 0.0)
    inner = (max(1, right - left), max(1, bottom - top))
    canvas.paste(source.resize(inner, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas, dtype=np.float32)


def _over(grey: npt.NDArray[np.float32], heat: npt.NDArray[np.float32]) -> Image.Image:
    """Heat in colours over a grey image, the hotter the less of it shows through."""
    ramp, places = np.array(_RAMP, dtype=np.float32), np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(heat, places, ramp[:, channel]) for channel in range(3)], -1)
    cover = 0.75 * np.sqrt(heat)[..., None]
    mixed = grey[..., None] * (1 - cover) + colours * cover
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
