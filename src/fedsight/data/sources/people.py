"""Pictures of people, in folders or listed in a CSV: whole people are held out for the test."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.base import Dataset, Location, sources
from fedsight.data.images.pixels import SUFFIXES
from fedsight.data.people import PeopleSource, people
from fedsight.data.sources.folder import looking_at, subfolders

COLUMNS = ("path", "person")


@sources.add("people", reads="folders of people, or a CSV: path, person, optionally site and split")
class People(PeopleSource):
    """A folder per person (`root/person/image`, or `root/site/person/image`), or a CSV.

    When the root holds `train/` and `test/`, these are the parts; otherwise `unseen` of each
    site's people are held out. The CSV has columns `path` and `person`, optionally `site` and
    `split` (train or test); paths are relative to its folder. People become numbers: their names
    are read, and forgotten.
    """

    path: Location  # the folder or the CSV
    sites_in_path: bool = False  # root/site/person/image

    def locations(self) -> dict[str, Path]:
        """The folder or the CSV."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """List the images and read them; DataError names the folder, file or line at fault."""
        if self.path.is_dir():
            children = {child.name: child for child in subfolders(self.path)}
            if {"train", "test"} <= children.keys():
                records = [
                    *self._sites(children["train"], False),
                    *self._sites(children["test"], True),
                ]
            else:
                records = list(self._sites(self.path, None))
        else:
            records = list(self._lines())
        return people(records, self, str(self.path))

    def _sites(self, root: Path, test: bool | None) -> Iterator[Record]:
        if not self.sites_in_path:
            yield from self._folders(root, None, test)
            return
        yield from (Record(file, "", "", test) for file in image_files(root))
        for site in subfolders(root):
            yield from self._folders(site, site.name, test)

    def _folders(self, root: Path, site: str | None, test: bool | None) -> Iterator[Record]:
        yield from (Record(file, "", site, test) for file in image_files(root))
        for folder in subfolders(root):
            nested = next((sub for sub in subfolders(folder) if image_files(sub)), None)
            if nested:
                raise DataError(
                    f"the person's folder '{folder}' has images in a folder of its own",
                    "set data.sites_in_path = true for site/person/image (false for "
                    "person/image), or move the images up",
                )
            yield from (Record(file, folder.name, site, test) for file in image_files(folder))

    def _lines(self) -> Iterator[Record]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                rows = csv.DictReader(stream, strict=True)
                header = list(rows.fieldnames or ())
                for column in COLUMNS:
                    if column not in header:
                        raise DataError(
                            f"{self.path}, line 1: there is no column '{column}' "
                            f"(found: {', '.join(header) or 'nothing'})",
                            "name the columns path, person, site, split in the first line",
                        )
                for row in rows:
                    yield self._record(row, f"{self.path}, line {rows.line_num}")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"'{self.path}' cannot be read as a CSV: {error}", "save it as CSV in UTF-8"
            ) from error

    def _record(self, row: dict[str | None, str | None], where: str) -> Record:
        if None in row or None in row.values():
            cause = f"{where} has {'more' if None in row else 'fewer'} values than the first line"
            raise DataError(cause, "correct the line; put values that contain a comma in quotes")
        values = {column: (value or "").strip() for column, value in row.items()}
        path, split = self.path.parent / values["path"], values.get("split")
        if not path.is_file():
            raise DataError(
                f"{where}: there is no image '{path}'",
                "correct the path (relative to the CSV's folder) or remove the line",
            )
        if split not in (None, "train", "test"):
            raise DataError(f"{where}: 'split' is '{split}'", "write 'train' or 'test'")
        if values.get("site") == "":
            raise DataError(f"{where}: 'site' is empty", "fill it in or remove the line")
        test = None if split is None else split == "test"
        return Record(str(path), values["person"], values.get("site"), test, where)


def image_files(root: Path) -> list[str]:
    """Image files that are not hidden, by name; files of other kinds are passed over."""
    with looking_at(root), os.scandir(root) as entries:
        return sorted(
            entry.path
            for entry in entries
            if not entry.name.startswith(".")
            and Path(entry.name).suffix.lower() in SUFFIXES
            and entry.is_file()
        )
