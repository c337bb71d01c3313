"""MedMNIST files: one .npz per 2-D data set, grey or colour."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Location, Source, Words, sources
from fedsight.data.numbered import array_part, class_names


@sources.add("medmnist", source="Yang et al. 2023, MedMNIST v2, doi:10.1038/s41597-022-01721-8")
class MedMnist(Source):
    """A MedMNIST `.npz` (2-D, grey or colour, one label per image)."""

    path: Location
    validation: Literal["leave_out", "train"] = "leave_out"  # what becomes of the val_ arrays
    classes: Words | None = None  # names in the order of the numbers; None: the numbers

    def locations(self) -> dict[str, Path]:
        """The file."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the arrays; DataError names the file, the array and what is wrong with it."""
        arrays = self._read()
        names = ["train", "val"] if self.validation == "train" else ["train"]
        images = [self._images(arrays, f"{name}_images") for name in names]
        test_images = self._images(arrays, "test_images")
        for name, array in zip(names, images, strict=True):
            if array.shape[1:] != test_images.shape[1:]:
                raise DataError(
                    f"'{self.path}': {name}_images are {array.shape[1:]}, test_images "
                    f"{test_images.shape[1:]}",
                    "the file is no MedMNIST set; fetch it again",
                )
        labels = [self._labels(arrays, f"{name}_labels") for name in names]
        train = array_part(np.concatenate(images), np.concatenate(labels), f"{self.path}/train")
        test = array_part(test_images, self._labels(arrays, "test_labels"), f"{self.path}/test")
        words = class_names(train.labels, test.labels, self.classes, str(self.path))
        preprocess = self.preprocess(*train.images.pixels.shape[1:])
        facts = {"title": self.path.stem, "validation": self.validation}
        return Dataset(train, test, words, preprocess, facts=facts)

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        parts = ("train", "test", "val") if self.validation == "train" else ("train", "test")
        wanted = [f"{part}_{what}" for part in parts for what in ("images", "labels")]
        try:
            with (
                self.path.open("rb") as stream,  # np.load would leave a broken file open
                np.load(stream, allow_pickle=False) as archive,
            ):
                missing = [name for name in wanted if name not in archive]
                if missing:
                    raise DataError(
                        f"'{self.path}' has no array '{missing[0]}'",
                        "a MedMNIST file has train_, val_ and test_ images and labels",
                    )
                return {name: archive[name] for name in wanted}
        except FileNotFoundError as error:
            raise DataError(f"'{self.path}' does not exist", "correct data.path") from error
        except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:
            raise DataError(
                f"'{self.path}' is no .npz of plain arrays: {error}", "fetch the file again"
            ) from error
        except (zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"'{self.path}' is corrupt or cut off: {error}", "fetch the file again"
            ) from error

    def _images(self, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        images = arrays[name]
        grey = images.ndim == 3
        if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
            raise DataError(
                f"'{self.path}': {name} is {images.dtype} of shape {images.shape}, not uint8 "
                "[n, h, w] or [n, h, w, 3]",
                "3-D sets (OrganMNIST3D and its kin) are not read; choose a 2-D one",
            )
        return images

    def _labels(self, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        labels = arrays[name]
        if labels.dtype.kind not in "ui" or labels.shape not in ((len(labels), 1), (len(labels),)):
            raise DataError(
                f"'{self.path}': {name} is {labels.dtype} of shape {labels.shape}, not integers "
                "[n, 1]",
                "sets with several labels per image (ChestMNIST) are not read; choose another",
            )
        return labels.reshape(-1)
