"""Images with a class for each pixel: masks in a CSV or in folders, COCO and YOLO outlines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import DataError, Problem
from fedsight.core.progress import progress
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import Dataset, Indices, Location, Words, sources
from fedsight.data.csv_file import CsvSource, listed_file, unlisted
from fedsight.data.detection.coco_set import coco_files
from fedsight.data.detection.found import is_yolo
from fedsight.data.groups import by_path, need_pattern
from fedsight.data.images.disk import ahead
from fedsight.data.images.mask_settings import ByColour, ByValue, Ignored, coding, problems
from fedsight.data.images.mask_values import Coding, Numbers
from fedsight.data.segmentation.layers import Layer
from fedsight.data.segmentation.outlined import Outside
from fedsight.data.segmentation.pairs import Pair, Pairs, Unpaired, no_pairs, pairs_in
from fedsight.data.segmentation.truths import Truths, of_files, of_outlines
from fedsight.data.sources.boxes import Boxes


@sources.add(
    "masks",
    reads="CSV with columns path and mask; images and masks in folders; outlines of COCO and YOLO",
)
class Masks(CsvSource):
    """Images with a class for each pixel, for segmentation.

    `path` is a CSV that lists images and masks, a folder with both (`images` beside `masks`, also
    with `train` and `val`, as Pascal VOC and Cityscapes have them, or `x_mask.png` beside `x.png`),
    or COCO JSON or YOLO files with outlines.

    In folders, an image may have a mask for each class, whose name or folder says it
    (`x_CLASS.png`, `masks/CLASS/x.png`), or, with one class beside the background, for each object
    (`x_mask_1.png`). Where masks of two classes overlap, the smaller one counts.

    Unless `values` or `colours` name those of each class, a grey value or a palette's number in a
    mask is the class number: 0 the background, 255 a pixel without a label. Outlines name their
    class; the rest of the image is the background. Masks are resized by taking the nearest pixel.
    Splits and counts use the most frequent class of an image other than the background, at the
    size of its file.
    """

    path: Location  # the CSV (paths in it are relative to its folder), the folder, or the JSON
    format: Literal["auto", "csv", "folders", "coco", "yolo"] = "auto"  # auto: seen from the files
    # in the order of the numbers, the background first; None: 'background' and the outlines' own
    classes: Words | None = Field(None, min_length=2, max_length=254)
    values: ByValue = ()  # of each class: {background = 0, lesion = 255}
    colours: ByColour = ()  # of each class: {road = "#804080", car = [0, 0, 142]}
    ignored: Ignored = None  # values or colours of pixels without a label; None: the value 255
    fit: Literal["stretch"] = "stretch"  # a mask is only stretched
    corrupt: Literal["error"] = "error"  # an image or a mask that cannot be read
    mask_column: str = "mask"  # the column of the masks' paths
    # in folders: how the names of masks end, where an image has several, such as "_labelTrainIds"
    mask_suffix: str | None = Field(None, min_length=1)
    unpaired: Unpaired = "error"  # in folders: images without a mask, and masks without an image
    sites_in_path: bool = False  # not in a CSV: the first folder below the root is the site
    images: Location | None = None  # COCO: the folder of the images; None: the annotations' own
    site_key: str | None = None  # COCO: what the entries of `images` call their site
    outside: Outside = "error"  # outlines that reach outside of their image

    def locations(self) -> dict[str, Path]:
        """The CSV, folder or JSON, and the folder of the images."""
        given = {"path": self.path, "images": self.images}
        return {key: path for key, path in given.items() if path is not None}

    def check(self) -> list[Problem]:
        """Problems of every source, and of the values and colours of the classes."""
        given = problems(self.classes or (), self.values, self.colours, self.ignored)
        return [*super().check(), *given]

    def open(self) -> Dataset:
        """Read the masks or outlines and the images; DataError names file and line."""
        for problem in problems(self.classes or (), self.values, self.colours, self.ignored):
            raise DataError(f"{problem.where}: {problem.cause}", problem.cure)
        truths = self._truths()
        classes, records = truths.classes, truths.records
        masks, seen, shown = [], np.zeros(len(classes), np.int64), []
        for number, numbers in enumerate(ahead(truths.draw, len(records)), 1):
            progress("masks read", number, len(records))
            # Not of the small mask: a program chooses its size, and by counts under many sizes it
            # would find out where in an image a class is.
            pixels = np.bincount(numbers.ravel(), minlength=256)[: len(classes)]
            seen += pixels > 0
            shown.append(classes[_most_frequent(pixels)])
            masks.append(self._small(numbers))
        known = [replace(one, label=name) for one, name in zip(records, shown, strict=True)]
        labels = Labels.single(known, classes, "keep")
        targets = torch.stack(masks) if masks else None
        # A mask may be all background; the files do not write the labels.
        labels = replace(labels, targets=targets, missing=True, written=None, entries=None)
        opened = self._checked(dataset(known, labels, self, str(self.path)), seen)
        return opened.read_from(truths.passed_over, truths.notes())

    def _truths(self) -> Truths:
        """The images, and where their classes are drawn."""
        kind = self.format
        if kind == "folders" or (kind == "auto" and self.path.is_dir()):
            levels = int(self.sites_in_path)
            found = pairs_in(self.path, self.mask_suffix, levels, self.classes)
            if kind == "folders" or found.pairs or found.masks:
                return self._paired(found)
        if kind == "auto":
            kind = self._kind()
        if kind == "csv":
            return self._listed()
        return self._outlined(kind)

    def _kind(self) -> Literal["csv", "coco", "yolo"]:
        """What is at `path`, which has no mask files if it is a folder."""
        if not self.path.is_dir():
            kinds: dict[str, Literal["coco", "yolo"]] = {".json": "coco", ".yaml": "yolo"}
            return kinds.get(self.path.suffix.lower().replace(".yml", ".yaml"), "csv")
        if coco_files(self.path):
            return "coco"
        if is_yolo(self.path):
            return "yolo"
        raise no_pairs(self.path, "there are neither masks nor outlines")

    def _coding(self) -> Coding:
        if self.classes is None:
            raise DataError(
                f"'{self.path}' has masks, whose pixels do not say what their classes are called",
                "name them in the order of their numbers: data.classes = ['background', ...]",
            )
        return coding(self.classes, self.values, self.colours, self.ignored)

    def _listed(self) -> Truths:
        """Images and masks as a CSV lists them."""
        records = self.listed(self.path, self.mask_column)
        files = [listed_file(self.path, record.label) for record in records]
        masks = [(Layer(str(file)),) for file in files]
        found = of_files(records, masks, self._coding())
        notes = self.unread(self.path)
        left = unlisted(self.path, records, files)
        return replace(found, notes=lambda: notes, passed_over=left)

    def _paired(self, found: Pairs) -> Truths:
        """Images and masks in folders."""
        need_pattern(self.group, "folders")
        found = found.settled(self.path, self.unpaired)
        records = [
            Record(pair.image, "", self._site(pair), pair.part, f"image '{pair.image}'")
            for pair in found.pairs
        ]
        masks = [pair.masks for pair in found.pairs]
        truths = of_files(by_path(records, self.group, self.path), masks, self._coding())
        said = truths.notes
        return replace(truths, notes=lambda: (*found.notes, *said()), passed_over=found.passed_over)

    def _site(self, pair: Pair) -> str | None:
        if not self.sites_in_path:
            return None
        if not pair.folders:
            raise DataError(
                f"image '{pair.image}' is not in the folder of a site",
                "move it into the folder of its site, or set data.sites_in_path = false",
            )
        return pair.folders[0]

    def _outlined(self, kind: Literal["coco", "yolo"]) -> Truths:
        """Images with outlines, as the source `boxes` finds them."""
        for key in ("values", "colours", "ignored"):
            if getattr(self, key):
                raise DataError(
                    f"data.{key} is set, but '{self.path}' has outlines, which name their class",
                    f"leave data.{key} out",
                )
        named = None if self.classes is None else self.classes[1:]
        source = Boxes(
            path=self.path,
            images=self.images,
            format=kind,
            classes=named,
            sites_in_path=self.sites_in_path,
            site_key=self.site_key,
            group=self.group,
        )
        found = source.read(self.path, shapes=True)
        return of_outlines(found, self.classes, self.similar_names, self.outside)

    def _small(self, numbers: Numbers) -> Tensor:
        """[h, w] uint8 at the size of the network's input."""
        height, width = self.shape
        small = Image.fromarray(numbers).resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small))

    def _checked(self, opened: Dataset, seen: Indices) -> Dataset:
        """The data set with what is to be said about classes without a pixel.

        `seen` counts the masks that show each class, before resizing. Raises DataError for a
        class that no training image shows, and where the test part shows the background alone,
        unless `missing` allows it.
        """
        count = len(opened.classes)
        trained, tested = opened.train.counts(count), opened.test.counts(count)
        size = f"{self.shape[0]} x {self.shape[1]}"
        notes = []
        for number, name in enumerate(opened.classes):
            if not trained[number]:
                cause = f"'{self.path}': no training image shows a pixel of class '{name}'"
                cure = f"add masks with it, take '{name}' out of data.classes, or allow it: "
                cure += 'data.missing = "allow"'
                if seen[number]:
                    cause += f" at {size} ({seen[number]} masks show it at full size)"
                    cure = f"raise data.size, or {cure}"
                if number and self.missing == "error":
                    raise DataError(cause, cure)
                notes.append(f"no training image shows a pixel of class '{name}'")
            if not tested[number]:
                notes.append(f"no test image shows a pixel of class '{name}': it is not measured")
            elif (lost := seen[number] - _shows(opened, number, trained, tested)) > 0:
                notes.append(f"masks that lose all pixels of class '{name}' at {size}: {lost}")
        if not tested[1:].any() and self.missing == "error":
            raise DataError(
                f"'{self.path}': no test image shows a class beside '{opened.classes[0]}', so "
                "nothing can be measured",
                "add test images that show the other classes",
            )
        return replace(opened, notes=(*opened.notes, *notes))


def _shows(opened: Dataset, number: int, trained: Indices, tested: Indices) -> int:
    """How many images show a class, in all parts."""
    aside = opened.validation
    further = 0 if aside is None else int(aside.counts(len(opened.classes))[number])
    return int(trained[number]) + int(tested[number]) + further


def _most_frequent(pixels: Indices) -> int:
    """The class with the most `pixels` [classes] beside the background; that, if they have none."""
    return 1 + int(pixels[1:].argmax()) if pixels[1:].any() else 0
