"""Pictures of people, in folders or listed in a CSV: whole people are held out for the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.base import Dataset, Location, sources
from fedsight.data.csv_file import Columns, image_records
from fedsight.data.listing import image_files, part_folders, subfolders
from fedsight.data.parts import PartName
from fedsight.data.people import PeopleSource, people


@sources.add("people", reads="folders of people, or a CSV: path, person, optionally site and split")
class People(PeopleSource):
    """A folder per person (`root/person/image`, or `root/site/person/image`), or a CSV.

    When the root holds `train/` and `test/` (or `val/`), these are the parts; otherwise `unseen`
    of each site's people are held out. The CSV has columns `path` and `person`, optionally `site`
    and `split` (train or test); paths are relative to its folder. People become numbers: their
    names are discarded after reading.
    """

    path: Location  # the folder or the CSV
    delimiter: str = Field(",", min_length=1, max_length=1)  # of a CSV
    sites_in_path: bool = False  # root/site/person/image

    def locations(self) -> dict[str, Path]:
        """The folder or the CSV."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """List the images and read them; DataError names the folder, file or line at fault."""
        if self.path.is_dir():
            records = [
                record
                for folder, part in part_folders(self.path)
                for record in self._sites(folder, part)
            ]
        else:
            cure = "name the columns path, person, site, split in the first line"
            columns = Columns(label="person")
            records = list(image_records(self.path, columns, cure, self.delimiter, unlabelled=True))
        return people(records, self, str(self.path))

    def _sites(self, root: Path, part: PartName | None) -> Iterator[Record]:
        if not self.sites_in_path:
            yield from self._folders(root, None, part)
            return
        yield from (Record(file, "", "", part) for file in image_files(root))
        for site in subfolders(root):
            yield from self._folders(site, site.name, part)

    def _folders(self, root: Path, site: str | None, part: PartName | None) -> Iterator[Record]:
        yield from (Record(file, "", site, part) for file in image_files(root))
        for folder in subfolders(root):
            nested = next((sub for sub in subfolders(folder) if image_files(sub)), None)
            if nested:
                raise DataError(
                    f"the person's folder '{folder}' has images in a folder of its own",
                    "set data.sites_in_path = true for site/person/image (false for "
                    "person/image), or move the images up",
                )
            yield from (Record(file, folder.name, site, part) for file in image_files(folder))
