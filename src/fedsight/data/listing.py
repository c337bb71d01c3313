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
from fedsight.data.layouts import Arrangement, Folders, Place, arranged
from fedsight.data.parts import part_named


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
        names = sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
        )
    return [root / name for name in names]


def tree(root: Path, accept: Callable[[str], bool] = is_picture) -> dict[Folders, list[str]]:
    """The image files in `root` and below, by the folders between; folders without any, too.

    Raises DataError for a folder that cannot be read, and for a link to a folder above it.
    """
    found: dict[Folders, list[str]] = {}
    _look(root, (), (os.path.realpath(root),), accept, found)
    return dict(sorted(found.items()))


def _look(
    folder: Path,
    names: Folders,
    above: tuple[str, ...],
    accept: Callable[[str], bool],
    found: dict[Folders, list[str]],
) -> None:
    found[names] = image_files(folder, accept)
    for below in subfolders(folder):
        real = os.path.realpath(below)
        if real in above:
            raise DataError(f"'{below}' is a link to a folder above it", "remove the link")
        _look(below, (*names, below.name), (*above, real), accept, found)


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

    Folders of parts may stand at any depth (`layouts.arranged`).
    """

    root: Path
    by_site: bool = False
    accept: Callable[[str], bool] = is_picture

    def read(self) -> tuple[list[Record], tuple[str, ...]]:
        """All images by part, site and class, and what is to be said about the folders.

        Raises DataError naming the folder or file at fault.
        """
        with looking_at(self.root):
            there = self.root.is_dir()
        if not there:
            raise DataError(
                f"'{self.root}' is not a folder", "set data.path to the folder of the images"
            )
        found = tree(self.root, self.accept)
        levels = 2 if self.by_site else 1
        full = [folders for folders, files in found.items() if files]
        layout = arranged(full, self.root, levels, exact=True)
        self._refuse_empty(found, layout)
        if not full and (names := [folders[0] for folders in found if folders]):
            what = "site" if self.by_site else "class"
            raise DataError(
                f"{what} '{names[0]}' has no images in '{self.root / names[0]}'",
                "add images to it, or remove the folder",
            )
        records = []
        for folders in full:
            place, files = layout.places[folders], found[folders]
            self._check(folders, place.folders, files[0])
            site = place.folders[0] if self.by_site else None
            records += [Record(file, place.folders[-1], site, place.part) for file in files]
        return records, layout.notes

    def _check(self, folders: Folders, left: Folders, first: str) -> None:
        """DataError unless `left`, of `folders`, are those of a class, or of a site and class."""
        levels = 2 if self.by_site else 1
        if len(left) < levels:
            cure = "move it into the folder of its class"
            if left:
                cure = "set data.sites_in_path = false for class/image, or move it into site/class"
            raise DataError(f"image '{first}' is not in a class folder", cure)
        if len(left) > levels:
            folder = self.root.joinpath(*folders)
            raise DataError(
                f"class folder '{folder.parent}' has images in a folder of its own, "
                f"'{folder.name}'",
                "set data.sites_in_path = true for site/class/image (false for class/image), "
                "or move the images up",
            )

    def _refuse_empty(self, found: dict[Folders, list[str]], layout: Arrangement) -> None:
        """DataError for the folder of a part, a site or a class in which there are no images."""
        inside = {one[:depth] for one in layout.places for depth in range(len(one) + 1)}
        for one in found:
            if one in inside or one[:-1] not in inside:
                continue
            at = len(one) - 1
            for other, place in layout.places.items():
                if other[:at] != one[:at] or len(other) <= at:
                    continue
                what = self._role(other[at], place)
                if what == "part" and part_named(one[at]) is None:
                    continue
                if what:
                    raise DataError(
                        f"{what} '{one[at]}' has no images in '{self.root.joinpath(*one)}'",
                        "add images to it, or remove the folder",
                    )

    def _role(self, name: str, place: Place) -> str:
        """What a folder of an image stands for: a part, a site, a class, or nothing."""
        if place.part is not None and part_named(name) == place.part:
            return "part"
        if self.by_site:  # which may lack a class
            return "site" if place.folders[:1] == (name,) else ""
        return "class" if place.folders[-1:] == (name,) else ""
