"""CSV files by line, and those that list images: path, label, and if known site and part."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.base import SizedSource
from fedsight.data.listing import is_there
from fedsight.data.parts import part_stated

Row = tuple[int, dict[str, str]]  # the line, and its values by column


def csv_rows(path: Path, needed: Sequence[str], cure: str, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a CSV with a header that must contain the columns `needed`.

    Raises DataError naming file and line for a missing column (with `cure`), a row with more or
    fewer values than the header, and a file that cannot be read or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, delimiter=delimiter, strict=True)
            header = list(rows.fieldnames or ())
            for column in needed:
                if column not in header:
                    found = ", ".join(header) or "nothing"
                    raise DataError(
                        f"{path}, line 1: there is no column '{column}' (found: {found})", cure
                    )
            for row in rows:
                if None in row or None in row.values():
                    count = "more" if None in row else "fewer"
                    raise DataError(
                        f"{path}, line {rows.line_num} has {count} values than the first line",
                        "correct the line; put values that contain the delimiter in quotes",
                    )
                yield rows.line_num, row
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read: {error.strerror or error}", "give the path of a CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8: {error}", "save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{path}, line {rows.line_num + 1}: {error}", "correct the quotes of this line"
        ) from error


@dataclass(frozen=True)
class Columns:
    """The column names of a CSV that lists images.

    The columns `site` and `split` may be missing if they have their usual names.
    """

    path: str = "path"
    label: str = "label"
    site: str = "site"
    split: str = "split"

    @property
    def needed(self) -> list[str]:
        """The required columns."""
        pairs = ((self.site, "site"), (self.split, "split"))
        return [self.path, self.label, *(name for name, usual in pairs if name != usual)]


def image_records(
    path: Path, columns: Columns, cure: str, delimiter: str = ",", unlabelled: bool = False
) -> Iterator[Record]:
    """The images that a CSV lists, line by line; paths are relative to its folder.

    With `unlabelled`, a label may be empty. `cure` says how to name the columns. Raises DataError
    naming file and line, as `csv_rows` does, and for an empty value, an image that does not exist,
    and a word that names no part.
    """
    for line, row in csv_rows(path, columns.needed, cure, delimiter):
        where = f"{path}, line {line}"
        values = {column: value.strip() for column, value in row.items()}
        for column in (columns.path, columns.label, columns.site, columns.split):
            if values.get(column) == "" and not (unlabelled and column == columns.label):
                raise DataError(f"{where}: '{column}' is empty", "fill it in or remove the line")
        image = path.parent / values[columns.path]
        if not is_there(image):
            raise DataError(
                f"{where}: there is no image '{image}'",
                "correct the path (relative to the CSV's folder) or remove the line",
            )
        part = part_stated(values.get(columns.split), where, columns.split)
        label, site = values[columns.label], values.get(columns.site)
        yield Record(str(image), label, site, part, where)


class CsvSource(SizedSource):
    """A source whose images may be listed in a CSV, with columns of any name."""

    path_column: str = "path"
    site_column: str = "site"
    split_column: str = "split"
    delimiter: str = Field(",", min_length=1, max_length=1)

    def listed(self, path: Path, label: str, unlabelled: bool = False) -> list[Record]:
        """The images that the CSV `path` lists; `label` is the column of their labels.

        Raises DataError as `image_records` does.
        """
        columns = Columns(self.path_column, label, self.site_column, self.split_column)
        names = [key for key in type(self).model_fields if key.endswith("_column")]
        settings = ", ".join(f"data.{name}" for name in [*names, "delimiter"])
        cure = f"name the columns in the first line, or set {settings}"
        return list(image_records(path, columns, cure, self.delimiter, unlabelled))
