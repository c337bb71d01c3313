"""Lists image files in folders, in order, without hidden ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record
from fedsight.data.base import listed_reasons
from fedsight.data.images.formats import is_picture
from fedsight.data.layouts import Arrangement, Folders, Place, arranged
from fedsight.data.mistaken import mistaken
from fedsight.data.parts import part_named
from fedsight.data.passed_over import CLOSED, HIDDEN, LOOPS, SYSTEM, Tally, cures, is_system_folder


def is_there(path: Path) -> bool:
    """Whether `path` is a file; no file has too long a name, or is in a folder that is closed."""
    try:
        return path.is_file()
    except OSError:
        return False


def tree(
    root: Path,
    accept: Callable[[str], bool] = is_picture,
    tally: Tally | None = None,
    lenient: bool = False,
) -> dict[Folders, list[str]]:
    """The image files in `root` and below, by the folders between; folders without any, too.

    Hidden folders and those of operating systems are left out. `tally` counts the files that are
    not listed. Raises DataError for a folder that cannot be read, and for a link to a folder above
    it; if `lenient`, they are counted as well.
    """
    found: dict[Folders, list[str]] = {}
    _Walk(accept, tally if tally is not None else Tally(), lenient, found).into(
        root, (), (os.path.realpath(root),)
    )
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _Walk:
    """Goes through folders, and lists what it finds in `found`."""

    accept: Callable[[str], bool]
    tally: Tally
    lenient: bool
    found: dict[Folders, list[str]]

    def into(self, folder: Path, names: Folders, above: tuple[str, ...]) -> None:
        """List `folder`, which is below those in `above`, by their real names."""
        try:
            files, below = _entries(folder, self.accept, self.tally)
        except DataError:
            if not self.lenient:
                raise
            self.tally.add(str(folder), CLOSED)
            return
        self.found[names] = files
        for one in below:
            real = os.path.realpath(one)
            if real not in above:
                self.into(Path(one), (*names, Path(one).name), (*above, real))
            elif self.lenient:
                self.tally.add(one, LOOPS)
            else:
                raise DataError(f"'{one}' is a link to a folder above it", "remove the link")


def _entries(
    root: Path, accept: Callable[[str], bool], tally: Tally
) -> tuple[list[str], list[str]]:
    """The accepted files and the folders in `root` that are not hidden, by name.

    `tally` counts what is neither.
    """
    files, folders = [], []
    with looking_at(root), os.scandir(root) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".")
            if entry.is_dir():
                if not hidden and not is_system_folder(entry.name):
                    folders.append(entry.path)
                else:
                    tally.add_all(entry.path, SYSTEM if is_system_folder(entry.name) else HIDDEN)
            elif not hidden and entry.is_file() and accept(entry.path):
                files.append(entry.path)
            else:
                tally.add(entry.path)
    return sorted(files), sorted(folders)


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
class Listed:
    """Images, what to say about how they were found, and the files not read, by reason."""

    records: list[Record]
    notes: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)


def nothing_read(what: str, folder: Path, tally: Tally) -> DataError:
    """The error for a folder in which nothing is read."""
    inside = tally.inside(folder)
    others = f"; not read: {listed_reasons(inside)}" if inside else ""
    cure = "; ".join((*cures(inside), "add images to it, or remove the folder"))
    return DataError(f"{what} has no images in '{folder}'{others}", cure)


@dataclass(frozen=True)
class ClassFolders:
    """A folder per class (`root/class/image`), or per site and class (`root/site/class/image`).

    Folders of parts may stand at any depth (`layouts.arranged`).
    """

    root: Path
    by_site: bool = False
    accept: Callable[[str], bool] = is_picture

    def read(self) -> Listed:
        """All images by part, site and class, and what is to be said about the folders.

        Raises DataError naming the folder or file at fault.
        """
        with looking_at(self.root):
            there = self.root.is_dir()
        if not there:
            what, cure = mistaken(self.root) or ("", "set data.path to the folder of the images")
            is_what = f"{what}, not a folder" if what else "not a folder"
            raise DataError(f"'{self.root}' is {is_what}", cure)
        tally = Tally()
        found = tree(self.root, self.accept, tally)
        levels = 2 if self.by_site else 1
        full = [folders for folders, files in found.items() if files]
        layout = arranged(full, self.root, levels, exact=True)
        self._refusenothing_read(found, layout, tally)
        if not full:
            names = [folders for folders in found if folders]
            lost = [one for one in names if tally.inside(self.root.joinpath(*one))] or names[:1]
            what = f"{'site' if self.by_site else 'class'} '{lost[0][0]}'" if lost else "the folder"
            raise nothing_read(what, self.root.joinpath(*(lost or [()])[0]), tally)
        records = []
        for folders in full:
            place, files = layout.places[folders], found[folders]
            self._check(folders, place.folders, files[0])
            site = place.folders[0] if self.by_site else None
            records += [Record(file, place.folders[-1], site, place.part) for file in files]
        read = {str(self.root.joinpath(*folders)): len(found[folders]) for folders in full}
        return Listed(records, (*layout.notes, *tally.notes(read)), tally.counts)

    def _check(self, folders: Folders, left: Folders, first: str) -> None:
        """DataError unless `left`, of `folders`, are those of a class, or of a site and class."""
        levels = 2 if self.by_site else 1
        if len(left) < levels:
            cure = "move it into the folder of its class, or list images and labels in a CSV for "
            cure += "data.name = 'manifest'"
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

    def _refusenothing_read(
        self, found: dict[Folders, list[str]], layout: Arrangement, tally: Tally
    ) -> None:
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
                    raise nothing_read(f"{what} '{one[at]}'", self.root.joinpath(*one), tally)

    def _role(self, name: str, place: Place) -> str:
        """What a folder of an image stands for: a part, a site, a class, or nothing."""
        if place.part is not None and part_named(name) == place.part:
            return "part"
        if self.by_site:  # which may lack a class
            return "site" if place.folders[:1] == (name,) else ""
        return "class" if place.folders[-1:] == (name,) else ""
