"""Image folders: a folder per class, optionally inside a folder per site."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record, dataset
from fedsight.data.base import Dataset, Location, SizedSource, Words, sources
from fedsight.data.images.pixels import SUFFIXES


@sources.add("folder", reads="PNG, JPEG, TIFF, BMP, WebP, PGM, GIF; 8 and 16 bit")
class Folder(SizedSource):
    """A folder per class (`root/class/image`), or per site and class (`root/site/class/image`).

    When the root holds `train/` and `test/`, these are the parts, each laid out in that way;
    otherwise `test_fraction` of the images is held out, by class and by site.
    """

    path: Location
    sites_in_path: bool = False  # root/site/class/image
    classes: Words | None = None  # the vocabulary, in order; None: the folders' names, sorted

    def locations(self) -> dict[str, Path]:
        """The root."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """List the folders and read the images; DataError names the folder or file at fault."""
        return dataset(self.records(), self, str(self.path), self.classes)

    def records(self) -> list[Record]:
        """All images by class and site; DataError names the folder or file at fault."""
        with looking_at(self.path):
            there = self.path.is_dir()
        if not there:
            raise DataError(f"'{self.path}' is no folder", "set data.path to the images' folder")
        children = {child.name: child for child in subfolders(self.path)}
        if {"train", "test"} <= children.keys():
            others = sorted(children.keys() - {"train", "test"})
            if others:
                raise DataError(
                    f"'{self.path}' has '{others[0]}' beside 'train' and 'test'",
                    "move it elsewhere, or its images into train or test",
                )
            return [*self._part(children["train"], False), *self._part(children["test"], True)]
        return list(self._part(self.path, None))

    def _part(self, root: Path, test: bool | None) -> Iterator[Record]:
        if not self.sites_in_path:
            yield from self._classes(root, None, test)
            return
        for site in subfolders(root):
            records = list(self._classes(site, site.name, test))
            if not records:
                raise DataError(
                    f"site '{site.name}' has no images in '{site}'",
                    "add class folders with images to it, or remove the folder",
                )
            yield from records

    def _classes(self, root: Path, site: str | None, test: bool | None) -> Iterator[Record]:
        if loose := next(iter(self._files(root)), None):
            raise DataError(
                f"image '{loose}' lies in no class folder",
                "move it into the folder of its class",
            )
        for folder in subfolders(root):
            files = self._files(folder)
            nested = next((sub for sub in subfolders(folder) if self._files(sub)), None)
            if nested:
                raise DataError(
                    f"class folder '{folder}' has images in a folder of its own, '{nested.name}'",
                    "set data.sites_in_path = true for site/class/image (false for class/image), "
                    "or move the images up",
                )
            if not files and site is None:
                raise DataError(
                    f"class '{folder.name}' has no images in '{folder}'",
                    "add images to it, or remove the folder",
                )
            for file in files:
                yield Record(file, folder.name, site, test)

    def is_image(self, path: str) -> bool:
        """Whether a file is taken for an image."""
        return Path(path).suffix.lower() in SUFFIXES

    def _files(self, root: Path) -> list[str]:
        """Image files that are not hidden, by name; files of other kinds are passed over."""
        with looking_at(root), os.scandir(root) as entries:
            return sorted(
                entry.path
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file() and self.is_image(entry.path)
            )


@contextlib.contextmanager
def looking_at(root: Path) -> Iterator[None]:
    """Turns the OSError of a folder, or of something in it, into a DataError that names both."""
    try:
        yield
    except OSError as error:
        what = str(error.filename or root)
        inside = "" if what == str(root) else f" ('{what}')"
        raise DataError(
            f"folder '{root}' cannot be read: {error.strerror or error}{inside}",
            "let this user read it (chmod u+rx), or take it away",
        ) from error


def subfolders(root: Path) -> list[Path]:
    """Subfolders that are not hidden, by name; DataError names a folder that cannot be read."""
    with looking_at(root), os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    return [root / name for name in names]
