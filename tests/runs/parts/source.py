"""A data source from outside the package."""

from __future__ import annotations

from dataclasses import replace

import fedsight as fs
from fedsight.data.base import ArrayImages, Dataset, Part
from fedsight.data.sources.samples import FashionMnist12k


@fs.register("few-garments", licence="MIT")
class FewGarments(fs.Source):
    """The first images of Fashion-MNIST at half size."""

    count: int = 200

    def open(self) -> Dataset:
        full = FashionMnist12k().open()
        train, test = self._few(full.train, self.count), self._few(full.test, 60)
        size = replace(full.preprocess, height=14, width=14)
        return replace(full, train=train, test=test, preprocess=size)

    def _few(self, part: Part, count: int) -> Part:
        pixels = part.images.pixels[:count, :, ::2, ::2].contiguous()
        return Part(ArrayImages(pixels, "garment"), part.labels[:count])
