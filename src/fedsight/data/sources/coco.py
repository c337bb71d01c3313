"""COCO JSON as image-level labels, where each image shows one category."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import Dataset, Location, SizedSource, Words, sources
from fedsight.data.class_names import says_order
from fedsight.data.detection.coco import read_coco
from fedsight.data.parts import PartName


@sources.add("coco", reads="COCO JSON; for classification, one category per image")
class Coco(SizedSource):
    """A COCO JSON whose images show one category each, as a classification set.

    For detection, the source `boxes` reads the same files with their boxes. Without
    `test_path`, `test_fraction` of the images is held out.
    """

    path: Location  # the JSON
    images: Location | None = None  # the folder of the images; None: the JSON's own
    test_path: Location | None = None  # a second JSON with the test part, same categories
    classes: Words | None = None  # the vocabulary, in order; None: the categories by their ids

    def locations(self) -> dict[str, Path]:
        """The JSON files and the image folder."""
        given = {"path": self.path, "images": self.images, "test_path": self.test_path}
        return {key: path for key, path in given.items() if path is not None}

    def open(self) -> Dataset:
        """Read the annotations and the images; DataError names the entry or the file at fault."""
        records, categories = self._records(self.path, None if self.test_path is None else "train")
        if self.test_path is not None:
            tests, others = self._records(self.test_path, "test")
            if set(others) != set(categories):
                odd = sorted(set(others) ^ set(categories))[0]
                raise DataError(
                    f"'{self.path}' and '{self.test_path}' differ in category '{odd}'",
                    "give both files the same categories",
                )
            records += tests
        labels = Labels.single(records, self.classes or categories, self.similar_names)
        if self.classes is None:
            labels = replace(labels, ordered=says_order(categories))
        return dataset(records, labels, self, str(self.path))

    def _records(self, path: Path, part: PartName | None) -> tuple[list[Record], tuple[str, ...]]:
        found = read_coco(path)
        folder = self.images or path.parent
        records = []
        for number, image in enumerate(found.images):
            shown = sorted({box.category for box in image.boxes})
            if len(shown) != 1:
                listed = f" ({', '.join(shown)})" if shown else ""
                raise DataError(
                    f"'{path}': image '{image.file}' has {len(shown)} categories{listed}, not one",
                    "classification needs exactly one category per image; for several objects use "
                    "data.name = 'boxes' and task.name = 'detect'",
                )
            file = str(folder / image.file)
            records.append(
                Record(file, shown[0], part=part, where=f"{path}, images[{number}]: {image.file}")
            )
        return records, found.categories
