"""Prints of images: what tells copies apart without keeping the images themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

SAMPLED = 64  # pixels across and down that are compared before whole images are
SEEN = 64  # side in pixels of what the thumbnail is made of
SIDE = 16  # of the grey thumbnail that stands for the look of an image
BLANK = 0.01  # the largest difference within a channel, in [0, 1], of an image of one colour
PLAIN = 0.01  # standard deviation of a thumbnail, in [0, 1], below which an image shows nothing
_BATCH = 256
Rasters = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class View:
    """What is looked at of an image: the same whatever size, fit and window a program asks for.

    Otherwise a program decided which images are copies, and would learn from the number that is
    left how many look alike in any view of its choice.
    """

    sample: Rasters  # [c, h, w] pixels at regular distances, at full depth
    small: Rasters  # [c, h, w] the whole image, made smaller


@dataclass(frozen=True)
class Prints:
    """The prints of n images.

    `digests` are equal where images are; those of files are equal for some others, too. `blank`
    [n] marks images of one colour, which are equal without being copies. `looks` [n, SIDE * SIDE]
    float16 are grey thumbnails without brightness and contrast (mean 0, length 1), so that the
    inner product of two is their correlation; all zero for an image that shows hardly anything.
    """

    digests: list[bytes]
    blank: npt.NDArray[np.bool_]
    looks: Tensor | None = None  # None: what is printed has no look, as a text has none

    def __len__(self) -> int:
        return len(self.digests)


@dataclass
class Printer:
    """Takes the prints of images one after the other, as they are decoded."""

    _digests: list[bytes] = field(default_factory=list)
    _looks: list[Tensor] = field(default_factory=list)
    _blank: list[bool] = field(default_factory=list)

    def add(self, view: View) -> None:
        """Take the print of the next image."""
        self._digests.append(_digest(view.sample))
        self._blank.append(_blank(view.sample) and _blank(view.small))
        self._looks.append(looks(torch.from_numpy(view.small)[None]))

    def prints(self) -> Prints:
        """Those of all images so far."""
        every = torch.cat([*self._looks, torch.empty(0, SIDE**2).half()])
        return Prints(self._digests, np.array(self._blank, dtype=bool), every)


def prints_of(pixels: Tensor, seen: bool = True) -> Prints:
    """The prints of images [n, c, h, w], or without `seen` of numbers that are no pixels."""
    parts = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    digests = [_digest(one) for part in parts for one in part.numpy()]
    if not seen:
        return Prints(digests, np.zeros(len(digests), dtype=bool))
    blank = np.array([_blank(one) for part in parts for one in part.numpy()], dtype=bool)
    return Prints(digests, blank, torch.cat([*map(looks, parts), torch.empty(0, SIDE**2).half()]))


def looks(pixels: Tensor) -> Tensor:
    """The look of each image [n, c, h, w]: float16 [n, SIDE * SIDE]."""
    full = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(pixels.dtype, 1.0)
    grey = (pixels.to(torch.float32) / full).mean(1, keepdim=True)
    small = functional.adaptive_avg_pool2d(grey, SIDE).flatten(1)
    small = small - small.mean(1, keepdim=True)
    length = small.norm(dim=1, keepdim=True)
    plain = length / SIDE < PLAIN  # length / SIDE is the standard deviation
    return torch.where(plain, 0.0, small / length.clamp_min(1e-12)).half()


def _blank(raster: npt.NDArray[Any]) -> bool:
    """Whether an image [c, h, w] is of one colour, but for the last bits."""
    full = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(raster.dtype, 1)
    spread = np.ptp(raster.reshape(len(raster), -1), axis=1).max()
    return bool(spread <= BLANK * full)


def _digest(raster: npt.NDArray[Any]) -> bytes:
    """Equal for equal values, whether they are kept in 8 bits or in 16 (8-bit x 257)."""
    if raster.dtype == np.uint8:
        raster = raster.astype(np.uint16) * 257
    return hashlib.blake2b(np.ascontiguousarray(raster).data, digest_size=16).digest()
