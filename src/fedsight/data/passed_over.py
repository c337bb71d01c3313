"""Why files in the folders of a data set are not read: counted by reason, with the cure."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedsight.core.files import opened
from fedsight.data.base import listed_reasons
from fedsight.data.images import dicom, formats

HIDDEN, SYSTEM, DEAD = "hidden", "system files", "dead links"
CLOSED, LOOPS, SPECIAL = "folders that cannot be read", "links to a folder above", "special files"
BARE_DICOM, BARE_IMAGE, BARE = "DICOM without suffix", "images without suffix", "no suffix"
UNLISTED = "images not listed"
_QUIET = frozenset({HIDDEN, SYSTEM})  # says nothing about the images that are missing
_SYSTEM_FILES = frozenset(
    {".ds_store", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
    | {
        "dicomdir",
        ".directory",
        ".localized",
        ".nomedia",
        ".gitkeep",
        ".gitattributes",
        ".gitignore",
    }
)
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
    | {".git", ".svn", ".hg", ".dvc", ".spotlight-v100", ".trashes", ".fseventsd"}
)
_ARCHIVE = re.compile(r"(?:\.tar)?\.(?:gz|bz2|xz|zst)$|\.(?:zip|tar|tgz|tbz2?|txz|rar|7z)$")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF")
_CONVERTED = frozenset({".jxl", ".psd", ".svg", ".pdf", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
_HEAD = 132  # bytes read of a file without suffix, as many as tell a DICOM file
_MOST = 3  # folders that are named
_LONGEST = 16  # characters of a suffix


def is_system_folder(name: str) -> bool:
    """Whether a folder belongs to an operating system or a version control, not to the data."""
    return name.casefold() in _SYSTEM_FOLDERS


def reason_for(path: str) -> str:
    """Why the file `path` is not read: its suffix, or what it is."""
    name = os.path.basename(path).casefold()  # noqa: PTH119 - a Path for each file is slow
    if name in _SYSTEM_FILES:
        return SYSTEM
    if name.startswith("."):
        return HIDDEN
    if not os.path.exists(path):  # noqa: PTH110
        return DEAD
    if not os.path.isfile(path):  # noqa: PTH113
        return SPECIAL
    if archive := _ARCHIVE.search(name):
        return archive[0]
    suffix = os.path.splitext(name)[1]  # noqa: PTH122
    if len(suffix) <= _LONGEST and re.search(r"[^\W\d]", suffix) and suffix.isprintable():
        return suffix
    try:
        with opened(Path(path)) as file:
            head = file.read(_HEAD)
    except OSError:
        return BARE
    if dicom.is_dicom(head):
        return BARE_DICOM
    return BARE_IMAGE if head.startswith(_MAGIC) else BARE


@dataclass
class Tally:
    """The files that are passed over, by the folder they lie in and by reason."""

    folders: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, path: str, reason: str | None = None) -> None:
        """Count the file or folder `path`; without a `reason`, as `reason_for` says."""
        folder = os.path.dirname(path)  # noqa: PTH120
        self.folders.setdefault(folder, Counter())[reason or reason_for(path)] += 1

    def add_all(self, folder: str, reason: str) -> None:
        """Count all files in `folder` and below; what cannot be read counts as one."""
        for _, _, files in os.walk(folder):
            for _ in files:
                self.add(folder, reason)

    @property
    def counts(self) -> dict[str, int]:
        """How many files for each reason."""
        total: Counter[str] = Counter()
        for found in self.folders.values():
            total += found
        return dict(sorted(total.items()))

    def inside(self, folder: Path) -> dict[str, int]:
        """How many files for each reason in `folder` and below."""
        total: Counter[str] = Counter()
        for name, found in self.folders.items():
            if Path(name).is_relative_to(folder):
                total += found
        return dict(sorted(total.items()))

    def notes(self, read: Mapping[str, int]) -> tuple[str, ...]:
        """What to do about it, and the folders of which most is passed over.

        `read` says how many files are read of each folder.
        """
        mostly = []
        for folder, found in sorted(self.folders.items()):
            lost = {reason: count for reason, count in found.items() if reason not in _QUIET}
            missed, kept = sum(lost.values()), read.get(folder, 0)
            if kept and missed > kept:
                said = listed_reasons(lost)
                mostly.append(
                    f"'{folder}': {missed} of {missed + kept} files are not read ({said})"
                )
        if len(mostly) > _MOST:
            more = len(mostly) - _MOST
            mostly = [*mostly[:_MOST], f"in {more} more folders most files are not read"]
        return (*cures(self.counts), *mostly)


def cures(counts: Mapping[str, int]) -> tuple[str, ...]:
    """What to do about files that were passed over, a sentence for each kind that has a cure."""
    said = []
    for kinds, cure in ((formats.HEIF_SUFFIXES, formats.EXTRA), (_CONVERTED, "convert them")):
        if found := sorted(kinds & counts.keys()):
            said.append(f"{' and '.join(found)} files are not read: {cure}")
    if any(reason == BARE_DICOM or reason in dicom.SUFFIXES for reason in counts):
        said.append("DICOM files are read by data.name = 'dicom'")
    if BARE_IMAGE in counts:
        said.append("images without a suffix are not read: add one, such as .jpg")
    if archives := [reason for reason in counts if _ARCHIVE.fullmatch(reason)]:
        said.append(f"{' and '.join(archives)} files are not looked into: extract them")
    return tuple(said)


def beside(
    used: Iterable[str | os.PathLike[str]], own: Collection[str] = (), reason: str = UNLISTED
) -> Tally:
    """The files beside those that are `used`, in the same folders, other than those used.

    Images among them count as `reason`. Files with a suffix in `own` are not counted.
    """
    known = {os.path.abspath(path) for path in used}  # noqa: PTH100
    tally = Tally()
    for folder in sorted({os.path.dirname(path) for path in known}):  # noqa: PTH120
        try:
            with os.scandir(folder) as entries:
                files = sorted(one.path for one in entries if not one.is_dir())
        except OSError:
            continue  # a folder that may be passed through and not listed
        for path in files:
            suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
            if path in known or suffix in own:
                continue
            why = reason_for(path)
            tally.add(path, reason if formats.is_picture(path) and why.startswith(".") else why)
    return tally
