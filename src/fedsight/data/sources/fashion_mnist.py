"""Fashion-MNIST in full, from the data set that `fedsight data get fashion-mnist` fetches."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fedsight.data.base import Dataset, sources
from fedsight.data.fetch.cache import fetched
from fedsight.data.images.arrays import ArraySource
from fedsight.data.sources.idx import Idx
from fedsight.data.sources.samples import FashionMnist12k


@sources.add("fashion-mnist", licence="MIT", images="60,000 train, 10,000 test, 28x28 grey")
class FashionMnist(ArraySource):
    """All of Fashion-MNIST in 10 balanced classes; `fedsight data get fashion-mnist` fetches it."""

    sample: ClassVar[bool] = True

    def needs(self) -> tuple[str, ...]:
        """The Debian package's files."""
        return ("fashion-mnist",)

    def open(self) -> Dataset:
        """Read the four IDX files."""
        names = FashionMnist12k.names
        opened = Idx(path=fetched("fashion-mnist"), classes=names).open()
        usual = (FashionMnist12k.pixel_mean, FashionMnist12k.pixel_std)
        preprocess = self.preprocess(1, 28, 28, usual=usual)
        facts = {**FashionMnist12k.facts, "title": "Fashion-MNIST"}
        return self.resized(replace(opened, preprocess=preprocess, facts=facts), usual)
