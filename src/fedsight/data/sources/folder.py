"""Image folders: a folder per class, optionally inside a folder per site."""

from __future__ import annotations

from pathlib import Path

from fedsight.data.assembly import Labels, dataset
from fedsight.data.base import Dataset, Location, SizedSource, Words, sources
from fedsight.data.class_map import MappedClasses
from fedsight.data.groups import by_path, need_pattern
from fedsight.data.listing import ClassFolders


@sources.add(
    "folder",
    reads="PNG, JPEG, TIFF, BMP, WebP, PGM, GIF, AVIF, JPEG 2000, HEIC (extra heif); 8 and 16 bit",
)
class Folder(MappedClasses, SizedSource):
    """A folder per class (`root/class/image`), or per site and class (`root/site/class/image`).

    Folders of parts (`train/`, `val/`, `test/`, `Training/`, `val2017/`) may stand at any depth;
    without them `test_fraction` of the images is held out, by class and by site.
    """

    path: Location
    sites_in_path: bool = False  # root/site/class/image
    classes: Words | None = None  # the vocabulary, in order; None: the folders' names, sorted

    def locations(self) -> dict[str, Path]:
        """The root."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """List the folders and read the images; DataError names the folder or file at fault."""
        need_pattern(self.group, "folders")
        listed = ClassFolders(self.path, self.sites_in_path).read()
        records = by_path(listed.records, self.group, self.path)
        labels = Labels.single(records, self.classes, self.similar_names, self.naming)
        found = dataset(records, labels, self, str(self.path))
        return found.read_from(listed.passed_over, listed.notes)
