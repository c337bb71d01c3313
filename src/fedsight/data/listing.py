"""Lists image files in folders, in order, without hidden ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.images.pixels import SUFFIXES
from fedsight.data.parts import KNOWN, PartName, are_parts, part_named


def is_picture(path: str) -> bool:
    """Whether a file is taken for an image, by its suffix."""
    return Path(path).suffix.lower() in SUFFIXES


def is_there(path: Path) -> bool:
    """Whether `path` is a file; no file has too long a name, or is in a folder that is closed."""
    try:
        return path.is_file()
    except OSError:
        return False


def image_files(root: Path, accept: Callable[[str], bool] = is_picture) -> list[str]:
    """Image files in `root` that are not hidden, by name; other files are ignored."""
    with looking_at(root), os.scandir(root) as entries:
        return sorted(
            entry.path
            for entry in entries
            if not entry.name.startswith(".") and entry.is_file() and accept(entry.path)
        )


def subfolders(root: Path) -> list[Path]:
    """Subfolders that are not hidden, by name; DataError names a folder that cannot be read."""
    with looking_at(root), os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    return [root / name for name in names]


def part_folders(root: Path) -> list[tuple[Path, PartName | None]]:
    """The folders of the parts in `root`; or `root` itself, when it holds none.

    Raises DataError for a folder beside them whose name is no part: nobody can say what it is for.
    """
    children = subfolders(root)
    if not are_parts(child.name for child in children):
        return [(root, None)]
    found: list[tuple[Path, PartName | None]] = []
    for child in children:
        part = part_named(child.name)
        if part is None:
            beside = " and ".join(f"'{one.name}'" for one in children if part_named(one.name))
            raise DataError(
                f"'{root}' has '{child.name}' beside {beside}",
                f"rename it if it is a part ({KNOWN}), or move it elsewhere",
            )
        found.append((child, part))
    return found


@contextlib.contextmanager
def looking_at(root: Path) -> Iterator[None]:
    """Turns an OSError of a folder or of something in it into a DataError that names both."""
    try:
        yield
    except OSError as error:
        what = str(error.filename or root)
        inside = "" if what == str(root) else f" ('{what}')"
        raise DataError(
            f"folder '{root}' cannot be read: {error.strerror or error}{inside}",
            "let this user read it (chmod u+rx), or move it elsewhere",
        ) from error


@dataclass(frozen=True)
class ClassFolders:
    """A folder per class (`root/class/image`), or per site and class (`root/site/class/image`).

    When the root holds folders of parts (`part_folders`), each is laid out in that way.
    """

    root: Path
    by_site: bool = False
    accept: Callable[[str], bool] = is_picture

    def records(self) -> list[Record]:
        """All images by class and site; DataError names the folder or file at fault."""
        with looking_at(self.root):
            there = self.root.is_dir()
        if not there:
            raise DataError(
                f"'{self.root}' is not a folder", "set data.path to the folder of the images"
            )
        return [
            record
            for folder, part in part_folders(self.root)
            for record in self._part(folder, part)
        ]

    def _part(self, root: Path, part: PartName | None) -> Iterator[Record]:
        if not self.by_site:
            yield from self._classes(root, None, part)
            return
        for site in subfolders(root):
            records = list(self._classes(site, site.name, part))
            if not records:
                raise DataError(
                    f"site '{site.name}' has no images in '{site}'",
                    "add class folders with images to it, or remove the folder",
                )
            yield from records

    def _classes(self, root: Path, site: str | None, part: PartName | None) -> Iterator[Record]:
        if loose := next(iter(self._files(root)), None):
            raise DataError(
                f"image '{loose}' is not in a class folder",
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
                yield Record(file, folder.name, site, part)

    def _files(self, root: Path) -> list[str]:
        return image_files(root, self.accept)
