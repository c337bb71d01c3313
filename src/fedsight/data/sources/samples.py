"""The built-in samples: real images that ship with the package, one class per set."""

from __future__ import annotations

import zipfile
from importlib.resources import files
from typing import ClassVar

import numpy as np

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.images.arrays import ArraySource
from fedsight.data.numbered import array_part


class BundledSample(ArraySource):
    """A set in `data/samples/`: an .npz with train and test images [n, h, w(, c)] and labels [n].

    A further set costs a file there (made by `tools/make_samples.py`), its notice, and a subclass.
    """

    sample: ClassVar[bool] = True

    file: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    facts: ClassVar[dict[str, str]]
    pixel_mean: ClassVar[float] = 0.5
    pixel_std: ClassVar[float] = 0.25

    def open(self) -> Dataset:
        """Read the shipped file."""
        path = files("fedsight.data").joinpath("samples", self.file)
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                train, test = (
                    array_part(
                        arrays[f"{p}_images"], arrays[f"{p}_labels"], f"{self.registered}/{p}"
                    )
                    for p in ("train", "test")
                )
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(
                f"the built-in sample '{path}' cannot be read: {error}", "install FedSight again"
            ) from error
        usual = self.pixel_mean, self.pixel_std
        channels, height, width = train.images.pixels.shape[1:]
        preprocess = self.preprocess(channels, height, width, usual=usual)
        facts = dict(self.facts)
        return self.resized(Dataset(train, test, self.names, preprocess, facts=facts), usual)


@sources.add("fashion-mnist-12k", licence="MIT", images="10,000 train, 2,000 test, 28x28 grey")
class FashionMnist12k(BundledSample):
    """12,000 Fashion-MNIST images in 10 balanced classes, shipped with the package."""

    file: ClassVar[str] = "fashion_mnist_12k.npz"
    names: ClassVar[tuple[str, ...]] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    facts: ClassVar[dict[str, str]] = {
        "title": "Fashion-MNIST, 12,000 of 70,000 images",
        "licence": "MIT",
        "credit": "Copyright 2017 Zalando SE; Xiao, Rasul, Vollgraf, arXiv:1708.07747",
    }
    pixel_mean: ClassVar[float] = 0.286
    pixel_std: ClassVar[float] = 0.353
