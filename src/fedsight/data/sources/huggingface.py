"""Hugging Face data sets on this machine (`save_to_disk`); an optional extra."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Labels, Record, dataset
from fedsight.data.base import (
    Dataset,
    Indices,
    Location,
    Preprocess,
    SizedSource,
    Words,
    sources,
)
from fedsight.data.class_names import says_order
from fedsight.data.features import check_lists, labels_of, vocabulary
from fedsight.data.images.decode import Origin
from fedsight.data.images.disk import LazyImages
from fedsight.data.parts import PartName


class TableImages(LazyImages):
    """The image column of memory-mapped tables, decoded when read."""

    def __init__(
        self, tables: list[Any], column: str, rows: list[tuple[int, int]], preprocess: Preprocess
    ) -> None:
        self.preprocess = preprocess
        self._tables, self._column, self._rows = tables, column, rows

    def __len__(self) -> int:
        return len(self._rows)

    def origin(self, index: int) -> Origin:
        """The encoded image, or the path of one that the table refers to."""
        table, row = self._rows[index]
        image = self._tables[table][row][self._column] or {}
        found: Origin | None = image.get("bytes") or image.get("path")
        if found is None:
            raise DataError(f"'{self.name(index)}' has no image", "remove the row")
        return found

    def name(self, index: int) -> str:
        """Part and row."""
        table, row = self._rows[index]
        return f"{('train', 'test')[table]}[{row}]"

    def only(self, indices: Indices) -> TableImages:
        """The same with some rows left out."""
        rows = [self._rows[index] for index in indices]
        return TableImages(self._tables, self._column, rows, self.preprocess)


@sources.add("huggingface", extra="huggingface", reads="datasets.save_to_disk folders")
class HuggingFace(SizedSource):
    """A Hugging Face data set saved with `save_to_disk`, with an image and a label column.

    A label is a class, a name or a number; a list of them means several labels of an image. A
    saved `DatasetDict` gives its `train` and `test` parts; a single data set, or one without a
    test part, has `test_fraction` held out. Nothing is fetched from a hub.
    """

    path: Location  # the folder that save_to_disk wrote
    image_column: str = "image"
    label_column: str = "label"
    site_column: str | None = None
    train_part: str = "train"
    test_part: str = "test"
    classes: Words | None = None  # the vocabulary; None: the label column's own names
    label_separator: str | None = Field(None, min_length=1)  # between several labels in a string

    def locations(self) -> dict[str, Path]:
        """The folder."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Map the tables and read the images; DataError names the column or row at fault."""
        tables = self._tables()
        records: list[Record] = []
        rows: list[tuple[int, int]] = []
        words: list[str | list[str]] = []
        names: tuple[str, ...] | None = None
        for number, table in enumerate(tables):
            self._check_columns(table)
            feature = table.features[self.label_column]
            names = names or vocabulary(feature)
            given = list(table[self.label_column])
            check_lists(given, f"{self.path}, column '{self.label_column}'")
            sites = table[self.site_column] if self.site_column else [None] * len(table)
            part: PartName | None = None
            if len(tables) > 1:
                part = "test" if number else "train"
            for row, (label, site) in enumerate(zip(given, sites, strict=True)):
                where = f"{self.path}, {('train', 'test')[number]}[{row}]"
                words.append(labels_of(feature, label, where))
                shown = words[-1] if isinstance(words[-1], str) else ", ".join(words[-1])
                records.append(Record(where, shown, None if site is None else str(site), part))
                rows.append((number, row))
        preprocess = self.preprocess(self.channels, *self.shape, fit=self.fit)
        tables = [self._undecoded(table) for table in tables]
        images = TableImages(tables, self.image_column, rows, preprocess)
        labels = self._labels(records, words, names)
        return dataset(records, labels, self, str(self.path), images)

    def _labels(
        self, records: list[Record], words: list[str | list[str]], names: tuple[str, ...] | None
    ) -> Labels:
        """The labels, of which each row has one in `words`, or each a list; `names` of its type."""
        classes, similar = self.classes or names, self.similar_names
        lists = [one for one in words if isinstance(one, list)]
        if len(lists) == len(words) > 0:
            labels = Labels.several(records, lists, classes, similar)
        else:
            labels = Labels.in_cells(records, classes, self.label_separator, similar)
        if self.classes is None and names is not None:
            return replace(labels, ordered=says_order(names))
        return labels

    def _tables(self) -> list[Any]:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                "the source 'huggingface' needs the package 'datasets', which is not installed",
                "pip install 'fedsight[huggingface]'",
            ) from error
        try:
            found = datasets.load_from_disk(str(self.path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{self.path}' is not a saved data set: {error}",
                "set data.path to the folder that datasets' save_to_disk wrote",
            ) from error
        if not isinstance(found, dict):
            return [found]
        if self.train_part not in found:
            raise DataError(
                f"'{self.path}' has no part '{self.train_part}' (found: {', '.join(found)})",
                "set data.train_part",
            )
        parts = [self.train_part, *([self.test_part] if self.test_part in found else [])]
        return [found[part] for part in parts]

    def _undecoded(self, table: Any) -> Any:
        """The table with encoded images, which FedSight decodes as it does for all sources."""
        import datasets

        if not isinstance(table.features[self.image_column], datasets.Image):
            raise DataError(
                f"column '{self.image_column}' of '{self.path}' holds "
                f"{table.features[self.image_column]}, not images",
                "set data.image_column to the column that holds the images",
            )
        columns = table.select_columns([self.image_column])
        return columns.cast_column(self.image_column, datasets.Image(decode=False))

    def _check_columns(self, table: Any) -> None:
        for column in (self.image_column, self.label_column, self.site_column):
            if column is not None and column not in table.column_names:
                raise DataError(
                    f"'{self.path}' has no column '{column}' "
                    f"(found: {', '.join(table.column_names)})",
                    "set data.image_column, data.label_column, data.site_column",
                )
