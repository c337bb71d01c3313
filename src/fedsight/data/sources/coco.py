"""COCO JSON as image-level labels, where each image shows one category."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import Dataset, Location, SizedSource, Words, sources
from fedsight.data.class_map import MappedClasses
from fedsight.data.class_names import says_order
from fedsight.data.detection.coco import read_coco
from fedsight.data.detection.coco_set import (
    CocoPart,
    coco_files,
    image_file,
    image_folders,
    unread,
)
from fedsight.data.detection.found import refuse_overlap
from fedsight.data.detection.voc_sets import bare
from fedsight.data.groups import by_path, column
from fedsight.data.layouts import arranged
from fedsight.data.parts import NAMES
from fedsight.data.passed_over import beside


@sources.add("coco", reads="COCO JSON; for classification, one category per image")
class Coco(MappedClasses, SizedSource):
    """A COCO JSON whose images show one category each, as a classification set.

    For detection, the source `boxes` reads the same files with their boxes. A folder with a file
    for each part (`instances_train2017.json`, `valid/_annotations.coco.json`) has these parts;
    without any, `test_fraction` of the images is held out.
    """

    path: Location  # the JSON, or the folder of several
    images: Location | None = None  # the folder of the images; None: the JSON's own
    test_path: Location | None = None  # a second JSON with the test part, same categories
    classes: Words | None = None  # the vocabulary, in order; None: the categories by their ids

    def locations(self) -> dict[str, Path]:
        """The JSON files and the image folder."""
        given = {"path": self.path, "images": self.images, "test_path": self.test_path}
        return {key: path for key, path in given.items() if path is not None}

    def open(self) -> Dataset:
        """Read the annotations and the images; DataError names the entry or the file at fault."""
        files = coco_files(self.path)
        if not files:
            raise DataError(f"'{self.path}' has no COCO file", "set data.path to the COCO JSON")
        notes: tuple[str, ...] = ()
        if self.test_path is not None:
            refuse_overlap(self.path, self.test_path)
            if len(files) > 1:
                raise DataError(
                    f"'{self.path}' has COCO files of {len(files)} parts, and data.test_path names "
                    "another",
                    "give one file as data.path, or leave data.test_path out",
                )
            files = [CocoPart(files[0].file, "train"), CocoPart(self.test_path, "test")]
        elif self.path.is_file():
            notes = unread(self.path)
        records: list[Record] = []
        categories: tuple[str, ...] | None = None
        for one in files:
            found, names = self._records(one)
            categories = names if categories is None else categories
            if set(names) != set(categories):
                odd = sorted(set(names) ^ set(categories))[0]
                raise DataError(
                    f"'{files[0].file}' and '{one.file}' differ in category '{odd}'",
                    "give both files the same categories",
                )
            records += found
        said = [f"'{one.file.name}' ({NAMES[one.part]})" for one in files if one.part]
        notes = (*notes, f"files of parts: {', '.join(said)}") if said else notes
        known = self.classes or self.mapped(categories, (record.site for record in records))
        labels = Labels.single(records, known, self.similar_names, self.naming)
        if self.classes is None:
            labels = replace(labels, ordered=says_order(categories or ()))
        opened = dataset(records, labels, self, str(self.path))
        used = [record.path for record in records]
        left = beside(used, own=(".json",)).counts
        return opened.read_from(left, notes)

    def _records(self, one: CocoPart) -> tuple[list[Record], tuple[str, ...]]:
        path, found = one.file, read_coco(one.file, group_key=column(self.group))
        tops = image_folders(path, self.images)
        folders = [bare(Path(image.file).parts[:-1]) for image in found.images]
        layout = arranged(folders, path.parent, 0, exact=False)
        records = []
        for number, (image, above) in enumerate(zip(found.images, folders, strict=True)):
            shown = sorted({box.category for box in image.boxes})
            if len(shown) != 1:
                listed = f" ({', '.join(shown)})" if shown else ""
                raise DataError(
                    f"'{path}': image '{image.file}' has {len(shown)} categories{listed}, not one",
                    "classification needs exactly one category per image; for several objects use "
                    "data.name = 'boxes' and task.name = 'detect'",
                )
            file = str(image_file(image.file, tops))
            part = one.part or image.part or layout.places[above].part
            where = f"{path}, images[{number}]: {image.file}"
            records.append(Record(file, shown[0], None, part, where, image.group))
        return by_path(records, self.group, tops[0]), found.categories
