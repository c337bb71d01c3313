"""MedMNIST files: one .npz per 2-D data set, grey or colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Location, Words, sources
from fedsight.data.images.arrays import ArraySource
from fedsight.data.numbered import ArrayPart, array_part, class_names

# Class names of the 2-D sets (Yang et al. 2023). RetinaMNIST has grades instead, from 0 (no
# retinopathy) to 4 (the most severe).
_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver"),
    *("lung-left", "lung-right", "pancreas", "spleen"),
)
NAMES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
        *("normal colon mucosa", "cancer-associated stroma"),
        "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule"),
        *("pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis"),
        *("pleural", "hernia"),
    ),
    "dermamnist": (
        *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma"),
        *("benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi"),
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal or benign"),
    "bloodmnist": (
        *("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte"),
        *("monocyte", "neutrophil", "platelet"),
    ),
    "tissuemnist": (
        *("collecting duct, connecting tubule", "distal convoluted tubule"),
        *("glomerular endothelial cells", "interstitial endothelial cells", "leukocytes"),
        *("podocytes", "proximal tubule segments", "thick ascending limb"),
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}


@sources.add("medmnist", source="Yang et al. 2023, MedMNIST v2, doi:10.1038/s41597-022-01721-8")
class MedMnist(ArraySource):
    """A MedMNIST `.npz` (2-D, grey or colour, of any size: 28, 64, 128, 224).

    Sets with one label per image suit the tasks `classify` and, where the classes are grades
    (RetinaMNIST), `ordinal`; one with several (ChestMNIST, labels [n, 14]) suits `multilabel`.
    """

    path: Location
    # what the val_ arrays are: the validation part, more training images, or nothing
    validation: Literal["keep", "train", "leave_out"] = "keep"
    # names in the order of the numbers; None: those of the set that the file is called after
    classes: Words | None = None

    def locations(self) -> dict[str, Path]:
        """The file."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the arrays; DataError names the file, the array and what is wrong with it."""
        arrays = self._read()
        names = ["train"] if self.validation == "leave_out" else ["train", "val"]
        images = [self._images(arrays, f"{name}_images") for name in names]
        test_images = self._images(arrays, "test_images")
        for name, array in zip(names, images, strict=True):
            if array.shape[1:] != test_images.shape[1:]:
                raise DataError(
                    f"'{self.path}': {name}_images are {array.shape[1:]}, test_images "
                    f"{test_images.shape[1:]}",
                    "the file is not a MedMNIST set; fetch it again",
                )
        labels = [self._labels(arrays, f"{name}_labels") for name in names]
        test_labels = self._labels(arrays, "test_labels")
        for name, array in zip(names, labels, strict=True):
            if array.shape[1] != test_labels.shape[1]:
                raise DataError(
                    f"'{self.path}': {name}_labels has {array.shape[1]} columns, test_labels "
                    f"{test_labels.shape[1]}",
                    "the file is not a MedMNIST set; fetch it again",
                )
        aside = None
        if self.validation == "keep":
            aside = self._part(images.pop(), labels.pop(), "val")
        train = self._part(np.concatenate(images), np.concatenate(labels), "train")
        test = self._part(test_images, test_labels, "test")
        words = self._names(train, test)
        preprocess = self.preprocess(*train.images.pixels.shape[1:])
        facts = {"title": self.path.stem, "validation": self.validation}
        found = Dataset(train, test, words, preprocess, facts=facts, validation=aside)
        return self.resized(found)

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        parts = ("train", "test") if self.validation == "leave_out" else ("train", "test", "val")
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
        except DataError:
            raise
        except Exception as error:  # NumPy and zipfile raise nearly every kind on broken files
            raise DataError(
                f"'{self.path}' is corrupt, truncated, or not an .npz of plain arrays: {error}",
                "fetch the file again",
            ) from error

    def _images(self, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        images = arrays[name]
        grey = images.ndim == 3
        if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
            raise DataError(
                f"'{self.path}': {name} is {images.dtype} of shape {images.shape}, not uint8 "
                "[n, h, w] or [n, h, w, 3]",
                "3-D sets (such as OrganMNIST3D) are not supported; choose a 2-D one",
            )
        return images

    def _labels(self, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        """Class numbers [n, 1], or zeros and ones [n, labels]."""
        labels = arrays[name]
        if labels.dtype.kind not in "ui" or labels.ndim not in (1, 2) or 0 in labels.shape[1:]:
            raise DataError(
                f"'{self.path}': {name} is {labels.dtype} of shape {labels.shape}, not integers "
                "[n, 1] or [n, labels]",
                "the file is not a MedMNIST set; fetch it again",
            )
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1] > 1 and np.any((labels != 0) & (labels != 1)):
            row, column = np.argwhere((labels != 0) & (labels != 1))[0]
            raise DataError(
                f"'{self.path}': {name}[{row}, {column}] is {labels[row, column]}, not 0 or 1",
                "where an image has several labels, each is 0 or 1",
            )
        return labels

    def _part(self, images: npt.NDArray[Any], labels: npt.NDArray[Any], name: str) -> ArrayPart:
        """A part; of several labels, splits and counts use the first that an image has."""
        part = array_part(
            images, labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0], f"{self.path}/{name}"
        )
        if labels.shape[1] == 1:
            return part
        return replace(part, targets=torch.from_numpy(labels.astype(np.float32)))

    def _names(self, train: ArrayPart, test: ArrayPart) -> tuple[str, ...]:
        if train.targets is None:
            count = int(max(train.labels.max(), test.labels.max())) + 1
            words = self.classes or known_names(self.path, count)
            return class_names(train.labels, test.labels, words, str(self.path))
        images = train.targets.sum(0)
        count = len(images)
        words = self.classes or known_names(self.path, count) or tuple(map(str, range(count)))
        if len(words) != count:
            raise DataError(
                f"'{self.path}' has {count} labels per image, data.classes names {len(words)}",
                "name every label in data.classes, in the order of the columns",
            )
        if int(images.min()) == 0:
            empty = int(images.argmin())
            raise DataError(
                f"'{self.path}': label {empty} ('{words[empty]}') has no training images",
                "choose a set in which every label occurs",
            )
        return words


def known_names(path: Path, count: int) -> tuple[str, ...] | None:
    """The names of the set that a file is called after (`chestmnist_224.npz`), if it has `count`
    classes."""
    names = NAMES.get(path.stem.lower().split("_")[0])
    return names if names is not None and len(names) == count else None
