"""Pictures of people, in folders or listed in a CSV: whole people are held out for the test."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.base import Dataset, Location, sources
from fedsight.data.csv_file import Columns, image_records, unlisted
from fedsight.data.layouts import arranged
from fedsight.data.listing import Listed, nothing_read, tree
from fedsight.data.passed_over import Tally
from fedsight.data.people import PeopleSource, people


@sources.add("people", reads="folders of people, or a CSV: path, person, optionally site and split")
class People(PeopleSource):
    """A folder per person (`root/person/image`, or `root/site/person/image`), or a CSV.

    Folders of parts (`train/`, `val/`, `test/`) may stand above those of people; without them
    `unseen` of each site's people are held out. The CSV has columns `path` and `person`, optionally
    `site` and `split` (train, val or test); paths are relative to its folder. People become
    numbers: their names are discarded after reading.
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
            listed = self._folders()
        else:
            cure = "name the columns path, person, site, split in the first line"
            columns = Columns(label="person")
            records = list(image_records(self.path, columns, cure, self.delimiter, unlabelled=True))
            listed = Listed(records, passed_over=unlisted(self.path, records))
        found = people(listed.records, self, str(self.path))
        return found.read_from(listed.passed_over, listed.notes)

    def _folders(self) -> Listed:
        """The images, also those outside the folder of a person, and what to say of the folders."""
        levels = 2 if self.sites_in_path else 1
        tally = Tally()
        files = {one: found for one, found in tree(self.path, tally=tally).items() if found}
        if not files:
            raise nothing_read("the folder", self.path, tally)
        layout = arranged(files, self.path, levels, exact=True)
        records: list[Record] = []
        for folders, found in files.items():
            place = layout.places[folders]
            if len(place.folders) > levels:
                raise DataError(
                    f"the person's folder '{self.path.joinpath(*folders[:-1])}' has images in a "
                    "folder of its own",
                    "set data.sites_in_path = true for site/person/image (false for "
                    "person/image), or move the images up",
                )
            person = place.folders[-1] if len(place.folders) == levels else ""
            site = "".join(place.folders[:1]) if self.sites_in_path else None
            records += [Record(file, person, site, place.part) for file in found]
        read = {str(self.path.joinpath(*folders)): len(found) for folders, found in files.items()}
        return Listed(records, (*layout.notes, *tally.notes(read)), tally.counts)
