"""Chooses the size, the model, the split and the training that fit the images that were found."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import SizedSource, sources
from fedsight.data.images.decode import upright
from fedsight.program.draft.base import Found
from fedsight.program.draft.guess import images_of

_SAMPLED = 48  # images whose headers are read
_FLAT = 40  # pixels: icons, digits, thumbnails
_LARGE = 96  # pixels of the shorter side from which a larger network is worth its time
_SITES = 5  # simulated, at most
_PER_SITE = 20  # training images that a simulated site should have
_SMALL_SITE = 64  # training images
_ROUNDS = 10
Table = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The images' sizes, from the headers of some: in the middle, and whether they have colour."""

    side: int  # the shorter one, in pixels; 0 where the source has a size of its own
    grey: bool


@dataclass(frozen=True)
class Fit:
    """The settings beside `[data]` that fit, and those of `[data]` that bring images to a size."""

    data: Table
    split: Table
    model: Table
    task: Table
    train: Table
    rounds: Table


def sampled(found: Found) -> Sample:
    """Reads the headers of some images."""
    paths = images_of(found)
    sides, colours = [], Counter[bool]()
    for path in paths[:: max(1, len(paths) // _SAMPLED)]:
        try:
            sides.append(min(upright(path)))
            with Image.open(path) as image:
                colours[
                    image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;")
                ] += 1
        except (DataError, OSError):
            continue  # the source judges it
    return Sample(int(median(sides)) if sides else 0, colours[True] > colours[False])


def sites_of(found: Found) -> int:
    """How many sites the images come from; 0 if they do not say."""
    return len(set(found.opened.train.sites or ()))


def fitted(found: Found, sample: Sample, size: int | None, sites: int | None) -> Fit:
    """Everything else, for the size and the number of simulated sites, or what fits."""
    task, images = found.guess.task, len(found.opened.train)
    sized = issubclass(sources.get(found.guess.data["name"]), SizedSource)
    side = size or (_size(task, sample.side) if sample.side else 0)
    data: Table = {"size": side} if sized and side else {}
    if sample.side and sized:
        data["channels"] = 1 if sample.grey else 3
    if not data:
        side = min(found.opened.preprocess.height, found.opened.preprocess.width)
    known = sites_of(found)
    count = sites or max(2, min(_SITES, images // _PER_SITE))
    split: Table = {"name": "natural"} if known else {"name": "iid", "sites": min(count, images)}
    each = list(Counter(found.opened.train.sites or itertools.repeat("", images)).values())
    least = min(each) if known else images // count
    train, model = _training(task, side, least)
    return Fit(data, split, model, {"name": task}, train, {"rounds": _ROUNDS})


def _size(task: str, side: int) -> int:
    """Pixels of the network's input, for images with so many on their shorter side."""
    if task == "detect":
        return _steps(side, 32, (64, 96, 128, 192, 256))
    if task == "segment":
        return _steps(side, 16, (16, 32, 48, 64, 96, 128))
    if task == "faces":
        return _steps(side, 16, (16, 24, 32, 48, 64))
    if side <= _FLAT:
        return max(8, min(32, side))
    return _steps(side, 32, (32, 48, 64, 96, 128))


def _steps(side: int, least: int, steps: Sequence[int]) -> int:
    """The largest of `steps` that needs no enlarging, or `least`."""
    return max((step for step in steps if step <= side), default=least)


def _training(task: str, side: int, least: int) -> tuple[Table, Table]:
    """`[train]` and `[model]` for the size, and the images of the smallest site."""
    train: Table = {"epochs": 2, "batch": 32 if least >= _SMALL_SITE else 8, "lr": 0.05}
    train["momentum"] = 0.9
    if task == "faces":
        return {**train, "epochs": 1, "lr": 0.02}, {"name": "face_net"}
    if task == "segment":
        train = {"epochs": 2, "batch": 8, "lr": 0.002, "optimiser": "adamw"}
        return train, {"name": "unet"}
    if task == "detect":
        train = {"epochs": 2, "batch": 8, "lr": 0.002, "optimiser": "adamw", "clip": 2}
        return train, {"name": "mobilenet_detector" if side >= 192 else "small_detector"}
    if side >= _LARGE:
        return {**train, "lr": 0.02}, {"name": "torchvision", "architecture": "resnet18"}
    blocks = 2 if side <= 32 else 3
    return train, {"name": "small_cnn", "blocks": min(blocks, side.bit_length() - 1)}
