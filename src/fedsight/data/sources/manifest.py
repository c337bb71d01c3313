"""A CSV manifest: one line per image with its path and label, and if known its site and part."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedsight.data.assembly import Labels, dataset
from fedsight.data.base import Dataset, Location, Words, sources
from fedsight.data.class_map import MappedClasses
from fedsight.data.columns import unread_beside
from fedsight.data.csv_file import CsvSource, unlisted


@sources.add("manifest", reads="CSV with columns path and label, optionally site and split")
class Manifest(MappedClasses, CsvSource):
    """A CSV with columns `path` and `label`, optionally `site` and `split` (train, val, test).

    Paths are relative to the CSV's folder. The columns `site` and `split` are used when they are
    there; without a `split` column, `test_fraction` of the images is held out. With
    `label_separator = "|"`, a label such as `Effusion|Edema` is two, and an empty one none.
    """

    path: Location  # the CSV
    classes: Words | None = None  # the vocabulary, in order; None: all labels, sorted
    label_column: str = "label"
    label_separator: str | None = Field(None, min_length=1)  # between several labels of an image

    def locations(self) -> dict[str, Path]:
        """The CSV."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the CSV and the images; DataError names file and line."""
        separator = self.label_separator
        records = self.listed(self.path, self.label_column, unlabelled=separator is not None)
        similar, naming = self.similar_names, self.naming
        labels = Labels.in_cells(records, self.classes, separator, similar, naming)
        opened = dataset(records, labels, self, str(self.path))
        beside = unread_beside(self.path) if records[0].part is None else ()
        left = unlisted(self.path, records)
        return opened.read_from(left, (*beside, *self.unread(self.path)))
