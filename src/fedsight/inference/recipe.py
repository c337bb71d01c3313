"""The recipe in an exported file: how to make its input from an image, and what it gives."""

from __future__ import annotations

from typing import Any

from fedsight.data.base import Preprocess
from fedsight.inference.saved import Saved

_FITS = {
    "stretch": "resize to width x height, ignoring the aspect ratio",
    "crop": "resize the shorter side, and cut the middle out",
    "pad": "resize the longer side, and centre on black",
}


def recipe(saved: Saved, normalises: bool) -> dict[str, Any]:
    """Everything that another program needs, as plain values; `normalises`: the file does it."""
    seen = saved.preprocess
    made: dict[str, Any] = {
        "input": {
            "name": "words" if seen.modality == "text" else "pixels",
            "type": "float32",
            "shape": ["n", seen.channels, seen.height, seen.width],
        },
        "outputs": outputs(saved),
    }
    if seen.modality == "text":
        return {**made, "steps": ["the word numbers of fedsight.data.text.texts"]}
    colour = "RGB" if seen.channels == 3 else "grey" if seen.channels == 1 else "as in the file"
    given = f"(x - mean) / std of each channel, mean {[*seen.mean]}, std {[*seen.std]}"
    steps = [
        "turn upright as the EXIF orientation says",
        f"convert to {colour}; transparent pixels onto black",
        f"{_FITS[seen.fit]}: bilinear with antialiasing, as Pillow's Image.BILINEAR",
        "divide 8-bit values by 255 (16-bit ones by 65535)",
        "arrange as channels, height, width",
        *_look(seen, normalises),
        f"do not normalise, the file does: {given}" if normalises else f"normalise: {given}",
    ]
    return {
        **made,
        "channel_order": colour,
        "layout": "NCHW",
        "range": [0, 1],
        "fit": seen.fit,
        "interpolation": "bilinear, antialiased",
        "normalised_inside": normalises,
        "mean": [*seen.mean],
        "std": [*seen.std],
        "steps": steps,
    }


def _look(seen: Preprocess, inside: bool) -> list[str]:
    """What makes images look alike."""
    if seen.look is None:
        return []
    does = "do not harmonise, the file does: " if inside else ""
    if seen.look.kind == "image":
        return [f"{does}give each channel of the image this mean and deviation of its pixels"]
    return [f"{does}match each channel's histogram to the quantiles {[*seen.look.template]}"]


def outputs(saved: Saved) -> dict[str, str]:
    """The file's outputs by name, with their shape and meaning."""
    if saved.task.takes != "boxes":
        return {"probabilities": "[n, classes], in the order of labels"}
    return {
        "boxes": "[n, 100, 4] left, top, right, bottom in pixels of the input",
        "scores": "[n, 100] from 0 to 1, highest first; 0 is padding; duplicates are removed",
        "classes": "[n, 100] positions in labels",
    }
