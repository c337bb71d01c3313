"""Hugging Face data sets on this machine (`save_to_disk`); an optional extra."""

from __future__ import annotations

from collections.abc import Mapping
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
from fedsight.data.class_map import MappedClasses
from fedsight.data.class_names import says_order
from fedsight.data.features import check_lists, labels_of, vocabulary
from fedsight.data.images.decode import Origin
from fedsight.data.images.disk import LazyImages
from fedsight.data.mistaken import mistaken
from fedsight.data.parts import NAMES, PartName, meant, part_named, part_stated
from fedsight.data.single_draws import are_wanted, content_key


class TableImages(LazyImages):
    """The image column of memory-mapped tables, decoded when read."""

    def __init__(
        self,
        tables: Mapping[str, Any],
        column: str,
        rows: list[tuple[str, int]],
        preprocess: Preprocess,
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
        return f"{table}[{row}]"

    def only(self, indices: Indices) -> TableImages:
        """The same with some rows left out."""
        rows = [self._rows[index] for index in indices]
        return TableImages(self._tables, self._column, rows, self.preprocess)


@sources.add("huggingface", extra="huggingface", reads="datasets.save_to_disk folders")
class HuggingFace(MappedClasses, SizedSource):
    """A Hugging Face data set saved with `save_to_disk`, with an image and a label column.

    A label is a class, a name or a number; a list of them means several labels of an image. A
    saved `DatasetDict` has parts, by any name (`train`, `validation`, `test`, `dev`); a single
    data set may have them in a column `split`. Else `test_fraction` is held out. Nothing is fetched
    from a hub.
    """

    path: Location  # the folder that save_to_disk wrote
    image_column: str = "image"
    label_column: str = "label"
    site_column: str | None = None
    # of a DatasetDict; None: by their names. If one is set, parts of unknown names are left out
    train_part: str | None = None
    test_part: str | None = None
    classes: Words | None = None  # the vocabulary; None: the label column's own names
    label_separator: str | None = Field(None, min_length=1)  # between several labels in a string

    def locations(self) -> dict[str, Path]:
        """The folder."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Map the tables and read the images; DataError names the column or row at fault."""
        tables = self._tables()
        parts, notes = self._parts(tables)
        records: list[Record] = []
        rows: list[tuple[str, int]] = []
        words: list[str | list[str]] = []
        names: tuple[str, ...] | None = None
        for name, part in parts.items():
            table = tables[name]
            self._check_columns(table)
            feature = table.features[self.label_column]
            names = names or vocabulary(feature)
            given = list(table[self.label_column])
            check_lists(given, f"{self.path}, column '{self.label_column}'")
            sites = table[self.site_column] if self.site_column else [None] * len(table)
            stated = self._stated(table, name, part)
            groups = table[self.group] if self.group else [None] * len(table)
            stored = self._undecoded(table) if are_wanted() else None
            for row, (label, site) in enumerate(zip(given, sites, strict=True)):
                where = f"{self.path}, {name}[{row}]"
                words.append(labels_of(feature, label, where))
                shown = words[-1] if isinstance(words[-1], str) else ", ".join(words[-1])
                own = None if site is None else str(site)
                group = None if groups[row] in (None, "") else str(groups[row])
                alone = group is None and stated[row] is None
                key = self._key(stored[row]) if stored is not None and alone else ""
                records.append(Record(where, shown, own, stated[row], group=group, key=key))
                rows.append((name, row))
        preprocess = self.preprocess(self.channels, *self.shape, fit=self.fit)
        encoded = {name: self._undecoded(tables[name]) for name in parts}
        images = TableImages(encoded, self.image_column, rows, preprocess)
        labels = self._labels(records, words, names)
        opened = dataset(records, labels, self, str(self.path), images)
        return replace(opened, notes=(*notes, *opened.notes))

    def _key(self, row: Mapping[str, Any]) -> str:
        """What a row is drawn by: its image, as it is stored or by the path of its file."""
        image = row[self.image_column] or {}
        return content_key(image.get("bytes") or str(image.get("path")).encode())

    def _labels(
        self, records: list[Record], words: list[str | list[str]], names: tuple[str, ...] | None
    ) -> Labels:
        """The labels, of which each row has one in `words`, or each a list; `names` of its type."""
        sites, similar = (record.site for record in records), self.similar_names
        classes = self.classes or self.mapped(names, sites)
        lists = [one for one in words if isinstance(one, list)]
        if len(lists) == len(words) > 0:
            labels = Labels.several(records, lists, classes, similar, self.naming)
        else:
            separator = self.label_separator
            labels = Labels.in_cells(records, classes, separator, similar, self.naming)
        if self.classes is None and names is not None:
            return replace(labels, ordered=says_order(names))
        return labels

    def _parts(
        self, tables: Mapping[str, Any]
    ) -> tuple[dict[str, PartName | None], tuple[str, ...]]:
        """The part that each table is, and what to say; DataError for a table that is none."""
        set_parts: dict[str | None, PartName] = {self.train_part: "train", self.test_part: "test"}
        for key, name in (("train_part", self.train_part), ("test_part", self.test_part)):
            if name is not None and name not in tables:
                raise DataError(
                    f"'{self.path}' has no part '{name}' (found: {', '.join(tables)})",
                    f"set data.{key}",
                )
        found: dict[str, PartName | None] = {}
        for name in tables:
            part = set_parts.get(name) or part_named(name)
            chosen = {"train": self.train_part, "test": self.test_part}.get(part or "")
            if part is None or (chosen is not None and chosen != name):
                continue
            found[name] = part
        others = [name for name in tables if name not in found]
        if others and self.train_part is None and self.test_part is None and len(tables) > 1:
            close = meant(others[0])
            hint = f"did you mean '{close}'? " if close else ""
            raise DataError(
                f"'{self.path}' has a part '{others[0]}' (found: {', '.join(tables)})",
                f"{hint}set data.train_part and data.test_part; other parts are then left out",
            )
        if len(tables) == 1:
            return dict.fromkeys(tables), ()
        if set(found.values()) == {"train"}:
            found = dict.fromkeys(found)
        said = [f"'{name}' ({NAMES[part]})" for name, part in found.items() if part]
        said += [f"'{name}' (not read)" for name in others]
        return found, (f"parts: {', '.join(said)}",) if said else ()

    def _stated(self, table: Any, name: str, part: PartName | None) -> list[PartName | None]:
        """The part of each row: that of its table, or what a column `split` of words says."""
        column = "split"
        if part is not None or getattr(table.features.get(column), "dtype", "") != "string":
            return [part] * len(table)
        return [
            part_stated(word, f"{self.path}, {name}[{row}]", column)
            for row, word in enumerate(table[column])
        ]

    def _tables(self) -> dict[str, Any]:
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
            if found := mistaken(self.path):
                raise DataError(f"'{self.path}' is {found[0]}", found[1]) from error
            raise DataError(
                f"'{self.path}' is not a saved data set: {error}",
                "set data.path to the folder that datasets' save_to_disk wrote",
            ) from error
        return dict(found) if isinstance(found, dict) else {"row": found}

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
        for column in (self.image_column, self.label_column, self.site_column, self.group):
            if column is not None and column not in table.column_names:
                raise DataError(
                    f"'{self.path}' has no column '{column}' "
                    f"(found: {', '.join(table.column_names)})",
                    "set data.image_column, data.label_column, data.site_column"
                    + (", data.group" if self.group else ""),
                )
