"""Boxes drawn on images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from fedsight.evaluation.fonts import font_for, plain
from fedsight.tasks.presentation import Mark

COLOURS = {
    "found": (213, 94, 0),
    "missed": (0, 158, 115),
    "false": (204, 121, 167),
}  # distinguishable for colour-blind readers
MIN_SIDE = 256  # pixels of the longer side: on smaller images a label would hide everything


def marked(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """`image` with its marks, enlarged by a whole factor if small; unchanged without marks."""
    if not marks:
        return image
    times = max(1, math.ceil(MIN_SIDE / max(image.size)))
    large = image.convert("RGB").resize(
        (image.width * times, image.height * times), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(large)
    width = max(1, max(large.size) // 200)
    for mark in sorted(marks, key=lambda mark: mark.kind == "found"):  # detections are drawn on top
        box = tuple(value * times for value in mark.box)
        draw.rectangle(box, outline=COLOURS[mark.kind], width=width)
        if mark.label:
            _label(draw, (box[0], box[1]), mark.label, COLOURS[mark.kind], large.size)
    return large


def _label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    """Text above the corner, or below it if there is no room; always within the image."""
    font = font_for(not plain(text))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 6
    above = corner[1] - height
    x = max(0.0, min(corner[0], size[0] - width))
    y = max(0.0, min(above if above >= 0 else corner[1], size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 3 - top), text, fill=(255, 255, 255), font=font)
