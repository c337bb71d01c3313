"""CSV files by line, and those that list images: path, label, and if known site and part."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.base import SizedSource
from fedsight.data.columns import UnreadParts, recognised, unread_groups
from fedsight.data.groups import by_path
from fedsight.data.groups import column as group_column
from fedsight.data.listing import is_there
from fedsight.data.mistaken import mistaken
from fedsight.data.parts import part_stated
from fedsight.data.passed_over import beside

_DELIMITERS = (",", ";", "\t", "|")
Row = tuple[int, dict[str, str]]  # the line, and its values by column


def csv_rows(path: Path, needed: Sequence[str], cure: str, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a CSV with a header that must contain the columns `needed`.

    The file is UTF-8, or UTF-16 with its mark; blank lines are passed over. Raises DataError naming
    file and line for a column that is missing (with `cure`) or there twice, a row with more or
    fewer values than the header or that is the header again, and a file that cannot be read.
    """
    if found := mistaken(path):
        raise DataError(f"'{path}' is {found[0]}, not a CSV file", found[1])
    end = 0  # the last line of the last row
    try:
        with path.open(encoding=_encoding(path), newline="") as stream:
            rows = csv.reader(stream, delimiter=delimiter, strict=True, skipinitialspace=True)
            header = [name.strip() for name in next(rows, [])]
            _check_header(path, header, needed, cure, delimiter)
            end = rows.line_num
            for row in rows:
                line, end = end + 1, rows.line_num  # a row in quotes may have several lines
                if not any(value.strip() for value in row):
                    continue
                where = f"{path}, line {line}"
                if len(row) != len(header):
                    count = "more" if len(row) > len(header) else "fewer"
                    raise DataError(
                        f"{where} has {count} values than the first line",
                        "correct the line; put values that contain the delimiter in quotes",
                    )
                if [value.strip() for value in row] == header:
                    raise DataError(
                        f"{where} is the first line again",
                        "remove it; it was left there when files were joined",
                    )
                yield line, dict(zip(header, row, strict=True))
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read: {error.strerror or error}", "give the path of a CSV file"
        ) from error
    except UnicodeError as error:
        cause = f"'{path}'{_at(path)} is not UTF-8: {error}"
        raise DataError(cause, "save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{path}, line {end + 1}: {error}", "correct the quotes of this line"
        ) from error


def _encoding(path: Path) -> str:
    """UTF-16 if the file begins with its mark, else UTF-8 with or without one."""
    with path.open("rb") as stream:
        return (
            "utf-16"
            if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            else "utf-8-sig"
        )


def _at(path: Path) -> str:
    """The first line that is not UTF-8, for a message."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return f", line {number}"
    return ""


def _check_header(
    path: Path, header: Sequence[str], needed: Sequence[str], cure: str, delimiter: str
) -> None:
    """DataError for a column that is missing or there twice."""
    where = f"{path}, line 1"
    places: dict[str, int] = {}
    for place, column in enumerate(header, 1):
        first = places.setdefault(column, place)
        if column and first != place:
            raise DataError(
                f"{where}: columns {first} and {place} are both called '{column}'",
                "rename or remove one of them",
            )
    for column in needed:
        if column in header:
            continue
        found = ", ".join(header) or "nothing"
        for other in _DELIMITERS:
            if other != delimiter and column in [n.strip() for n in found.split(other)]:
                told = "\\t" if other == "\t" else other
                cure = f'set data.delimiter = "{told}", which separates the columns'
        raise DataError(f"{where}: there is no column '{column}' (found: {found})", cure)


@dataclass(frozen=True)
class Columns:
    """The column names of a CSV that lists images.

    The columns `site` and `split` may be missing if they have their usual names.
    """

    path: str = "path"
    label: str = "label"
    site: str = "site"
    split: str = "split"
    group: str | None = None

    @property
    def needed(self) -> list[str]:
        """The required columns."""
        pairs = ((self.site, "site"), (self.split, "split"))
        further = [name for name, usual in pairs if name != usual]
        return [self.path, self.label, *further, *([self.group] if self.group else [])]


def image_records(
    path: Path, columns: Columns, cure: str, delimiter: str = ",", unlabelled: bool = False
) -> Iterator[Record]:
    """The images that a CSV lists, line by line; paths are relative to its folder.

    With `unlabelled`, a label may be empty. `cure` says how to name the columns. Raises DataError
    naming file and line, as `csv_rows` does, and for an empty value, an image that does not exist,
    a word that names no part, and a column that says parts but is not read.
    """
    names = (columns.path, columns.label, columns.site, columns.split)
    read = (*names, columns.group) if columns.group else names
    unread = UnreadParts(read)
    stated = False
    for line, row in csv_rows(path, columns.needed, cure, delimiter):
        where = f"{path}, line {line}"
        values = recognised({key: value.strip() for key, value in row.items()}, read)
        unread.look(values)
        stated = stated or columns.split in values
        for column in names:
            if values.get(column) == "" and not (unlabelled and column == columns.label):
                raise DataError(f"{where}: '{column}' is empty", "fill it in or remove the line")
        image = listed_file(path, values[columns.path])
        if not is_there(image):
            raise DataError(
                f"{where}: there is no image '{image}'",
                "correct the path (relative to the CSV's folder) or remove the line",
            )
        part = part_stated(values.get(columns.split), where, columns.split)
        label, site = values[columns.label], values.get(columns.site)
        group = values[columns.group] or None if columns.group else None
        yield Record(str(image), label, site, part, where, group)
    if not stated:
        unread.refuse(path, 'set data.split_column = "{column}", or rename the column')


def listed_file(path: Path, value: str) -> Path:
    """A file that the CSV `path` lists, relative to its folder; Windows' separators count too."""
    file = path.parent / value
    if "\\" in value and not is_there(file):
        return path.parent / value.replace("\\", "/")
    return file


def unlisted(
    path: Path, records: Sequence[Record], others: Iterable[Path] = ()
) -> Mapping[str, int]:
    """The files beside the listed images (and `others` that are used) that the CSV does not list.

    By reason; files that belong to the CSV itself are not counted.
    """
    used: list[str | Path] = [*(record.path for record in records), path, *others]
    return beside(used, own=(path.suffix.lower(),)).counts


class CsvSource(SizedSource):
    """A source whose images may be listed in a CSV, with columns of any name."""

    path_column: str = "path"
    site_column: str = "site"
    split_column: str = "split"
    delimiter: str = Field(",", min_length=1, max_length=1)

    def unread(self, path: Path) -> tuple[str, ...]:
        """What to say about columns of the CSV `path` that seem to name groups."""
        used = {getattr(self, key) for key in type(self).model_fields if key.endswith("_column")}
        first = next(csv_rows(path, (), "", self.delimiter), (0, {}))[1]
        return unread_groups([one for one in first if one not in used], self.group)

    def listed(self, path: Path, label: str, unlabelled: bool = False) -> list[Record]:
        """The images that the CSV `path` lists; `label` is the column of their labels.

        Raises DataError as `image_records` does.
        """
        columns = Columns(
            self.path_column, label, self.site_column, self.split_column, group_column(self.group)
        )
        names = [key for key in type(self).model_fields if key.endswith("_column")]
        settings = ", ".join(
            f"data.{name}" for name in [*names, "delimiter", *(["group"] if self.group else [])]
        )
        cure = f"name the columns in the first line, or set {settings}"
        records = list(image_records(path, columns, cure, self.delimiter, unlabelled))
        return by_path(records, self.group, path.parent)
