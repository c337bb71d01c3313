"""Images in memory at another size than they are stored in, for networks that want larger ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsight.data.base import ArrayImages, Dataset, Fit, Part, Preprocess, Side, Source, scaled
from fedsight.data.images.decode import fitted


class ScaledImages(ArrayImages):
    """Images held as they are, and brought to the size of the input each time they are read.

    The pixels are those that a file of the image would give, so that prediction agrees.
    """

    def __init__(self, pixels: Tensor, origin: str, preprocess: Preprocess) -> None:
        super().__init__(pixels, origin)
        self._preprocess = preprocess

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` [b]: float32 [b, c, h, w], values 0 to 1."""
        chosen = self.pixels[indices].permute(0, 2, 3, 1).numpy()
        sized = np.stack([fitted(one, self._preprocess) for one in chosen])
        return scaled(torch.from_numpy(sized))


class ArraySource(Source):
    """A source of images in memory, which all have one size."""

    # square or [height, width] that they are brought to; None: as they are
    size: Side | Annotated[tuple[Side, Side], Field(strict=False)] | None = None
    channels: Literal[1, 3] | None = None  # None: as they are
    fit: Fit = "stretch"

    def resized(self, opened: Dataset, usual: tuple[float, float] = (0.5, 0.25)) -> Dataset:
        """The data set with images of `size` and `channels`; `usual` as in `preprocess`."""
        now = opened.preprocess
        size = (now.height, now.width) if self.size is None else self.size
        height, width = size if isinstance(size, tuple) else (size, size)
        channels = self.channels or now.channels
        if (channels, height, width) == (now.channels, now.height, now.width):
            return opened
        goal = self.preprocess(channels, height, width, self.fit, usual)

        def sized(part: Part) -> Part:
            images = part.images
            assert isinstance(images, ArrayImages)
            return replace(part, images=ScaledImages(images.pixels, images.origin, goal))

        aside = None if opened.validation is None else sized(opened.validation)
        train, test = sized(opened.train), sized(opened.test)
        return replace(opened, train=train, test=test, validation=aside, preprocess=goal)
