"""A CSV manifest: one line per image with its path and label, and if known its site and part."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record, dataset
from fedsight.data.base import Dataset, Location, SizedSource, Words, sources


@sources.add("manifest", reads="CSV with columns path and label, optionally site and split")
class Manifest(SizedSource):
    """A CSV with columns `path` and `label`, optionally `site` and `split` (train or test).

    Paths are relative to the CSV's folder. The columns `site` and `split` are used when they are
    there; without a `split` column, `test_fraction` of the images is held out. With
    `label_separator = "|"`, a label such as `Effusion|Edema` is two, and an empty one none.
    """

    path: Location  # the CSV
    classes: Words | None = None  # the vocabulary, in order; None: all labels, sorted
    path_column: str = "path"
    label_column: str = "label"
    label_separator: str | None = Field(None, min_length=1)  # between several labels of an image
    site_column: str = "site"
    split_column: str = "split"
    delimiter: str = Field(",", min_length=1, max_length=1)

    def locations(self) -> dict[str, Path]:
        """The CSV."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the CSV and the images; DataError names file and line."""
        records = list(self.records())
        return dataset(records, self, str(self.path), self.classes, separator=self.label_separator)

    def records(self) -> Iterator[Record]:
        """The images, line by line; DataError names file and line."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                rows = csv.DictReader(stream, delimiter=self.delimiter, strict=True)
                self._check_header(list(rows.fieldnames or ()))
                for row in rows:
                    yield self._record(row, f"{self.path}, line {rows.line_num}")
        except OSError as error:
            raise DataError(
                f"'{self.path}' cannot be read: {error.strerror or error}",
                "set data.path to the CSV manifest",
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"'{self.path}' is not UTF-8: {error}", "save it as UTF-8") from error
        except csv.Error as error:
            raise DataError(
                f"{self.path}, line {rows.line_num + 1}: {error}", "correct the quotes of this line"
            ) from error

    def _check_header(self, header: list[str]) -> None:
        needed = [self.path_column, self.label_column]
        for key, usual in (("site_column", "site"), ("split_column", "split")):
            if getattr(self, key) != usual:  # asked for by name, so it must be there
                needed.append(getattr(self, key))
        for column in needed:
            if column not in header:
                raise DataError(
                    f"{self.path}, line 1: there is no column '{column}' "
                    f"(found: {', '.join(header) or 'nothing'})",
                    "name the columns in the first line, or set data.path_column, "
                    "data.label_column, data.site_column, data.split_column, data.delimiter",
                )

    def _record(self, row: dict[str | None, str | None], where: str) -> Record:
        if None in row or None in row.values():
            raise DataError(
                f"{where} has {'more' if None in row else 'fewer'} values than the first line",
                "correct the line; put values that contain the delimiter in quotes",
            )
        values = {column: (value or "").strip() for column, value in row.items()}
        used = (self.path_column, self.label_column, self.site_column, self.split_column)
        for column in used:
            no_label = column == self.label_column and self.label_separator is not None
            if values.get(column) == "" and not no_label:
                raise DataError(f"{where}: '{column}' is empty", "fill it in or remove the line")
        path = self.path.parent / values[self.path_column]
        if not path.is_file():
            raise DataError(
                f"{where}: there is no image '{path}'",
                "correct the path (relative to the CSV's folder) or remove the line",
            )
        split = values.get(self.split_column)
        if split not in (None, "train", "test"):
            raise DataError(
                f"{where}: '{self.split_column}' is '{split}'", "write 'train' or 'test'"
            )
        return Record(
            path=str(path),
            label=values[self.label_column],
            site=values.get(self.site_column),
            test=None if split is None else split == "test",
            where=where,
        )
