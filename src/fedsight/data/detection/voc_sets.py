"""Pascal VOC's folders: the image sets, which say what is in which part, and where images lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.images.formats import HEIF_SUFFIXES, SUFFIXES, is_picture
from fedsight.data.layouts import PLAIN, Folders
from fedsight.data.listing import is_there
from fedsight.data.parts import NAMES, PartName, meant, part_named
from fedsight.data.reading import file_text

_FOLDER = "imagesets"
_ANNOTATIONS = frozenset({"annotations", "annotation", "xmls", "xml", "labels"})
_BOTH = "trainval"  # the training and the validation part, as one


@dataclass(frozen=True)
class ImageSets:
    """The part of each image by its name without suffix, and the line that says so."""

    parts: Mapping[str, PartName]
    lines: Mapping[str, str]


def xml_files(root: Path) -> list[Path]:
    """The XML files below `root`, without those in hidden folders."""
    found = (path for path in root.rglob("*.[xX][mM][lL]"))
    return sorted(
        path
        for path in found
        if not any(one.startswith(".") or one == "__MACOSX" for one in path.relative_to(root).parts)
    )


def sets_above(
    file: Path, root: Path, known: dict[Path, ImageSets | None], task: str = "main"
) -> Path | None:
    """The nearest folder above `file`, up to `root`, that has image sets; `known` keeps them."""
    for folder in file.parents:
        if folder not in known:
            known[folder] = image_sets(folder, task)
        if known[folder] is not None:
            return folder
        if folder == root:
            break
    return None


def refuse_unfound(known: Mapping[Path, ImageSets | None], found: set[tuple[Path, str]]) -> None:
    """DataError for an image that the sets list and that has no annotation among `found`.

    Sets of folders in which nothing was found are not judged: those of other tasks.
    """
    for base, sets in known.items():
        if sets is None or not any(folder == base for folder, _ in found):
            continue
        for name, line in sets.lines.items():
            if (base, name) not in found:
                raise DataError(
                    f"{line}: there is no annotation '{name}.xml' in '{base}'",
                    "restore it, or remove the line",
                )


def bare(folders: Folders) -> Folders:
    """Without folders that only say that annotations or images are in them."""
    return tuple(one for one in folders if one.casefold() not in _ANNOTATIONS | PLAIN)


def picture_of(xml: Path, name: str, root: Path, images: Path | None) -> Path:
    """The image of an annotation below `root`: by the name in it, or its own.

    Beside it, in `JPEGImages` or `images` for one in `Annotations` (also with folders of parts or
    sites below), or in `images` if that is given. Raises DataError if there is none.
    """
    name = Path(name.replace("\\", "/")).name or xml.stem
    names = [name, *(xml.stem + suffix for suffix in sorted(SUFFIXES | HEIF_SUFFIXES))]
    folders = [xml.parent, xml.parent.parent / "JPEGImages"]
    below = xml.parent.relative_to(root).parts
    for at, folder in enumerate(below):
        if folder.casefold() in _ANNOTATIONS:
            beside = [one for one in root.joinpath(*below[:at]).glob("*") if one.is_dir()]
            tops = [one for one in beside if one.name.casefold() in PLAIN]
            folders += [one.joinpath(*below[at + 1 :]) for one in sorted(tops)]
    if images is not None:
        folders = [images.joinpath(*below), images]
    for place in folders:
        for file in (place / one for one in names):
            if is_there(file) and is_picture(str(file)):
                return file
    raise DataError(
        f"'{xml}': there is no image '{name}' in '{folders[0]}'",
        "set data.images to the images' folder",
    )


def image_sets(base: Path, task: str = "main") -> ImageSets | None:
    """What the image sets of the VOC folder `base` say; None if it has none.

    Those in `ImageSets/Main` (or of another `task`), else in `ImageSets`, else text files in `base`
    itself. Where `train` and `val` are listed, `trainval` says nothing more. Raises DataError
    naming file and line for an image in two parts, and for a file with a misspelt name.
    """
    places = []
    if sets := _child(base, _FOLDER):
        places = [one for one in (_child(sets, task), sets) if one is not None]
    for folder in (*places, base):
        files = _files(folder)
        if files:
            return _read(files)
    return None


def _child(folder: Path, name: str) -> Path | None:
    """The folder in `folder` that has `name`, in any case."""
    return next((one for one in folder.glob("*") if one.name.casefold() == name), None)


def _files(folder: Path) -> dict[str, Path]:
    """The text files of parts in `folder`, by their names in lower case."""
    texts = [one for one in sorted(folder.glob("*")) if one.suffix.lower() == ".txt"]
    found = {one.stem.casefold(): one for one in texts if part_named(one.stem) is not None}
    for one in texts:
        odd = one.stem.casefold() not in found and "_" not in one.stem  # those of classes have one
        if found and odd and (close := meant(one.stem)):
            raise DataError(
                f"'{one}' lists images of no part", f"did you mean '{close}'? rename or remove it"
            )
    return found


def _read(files: dict[str, Path]) -> ImageSets:
    parts: dict[str, PartName] = {}
    lines: dict[str, str] = {}
    named = {part_named(stem) for stem in files if stem != _BOTH}
    if {"train", "validation"} <= named:
        files = {stem: file for stem, file in files.items() if stem != _BOTH}
    # `trainval` last: where only `val` is beside it, the others are the training part
    order = {part: place for place, part in enumerate(NAMES)}
    for stem, file in sorted(
        files.items(),
        key=lambda pair: (pair[0] == _BOTH, order[part_named(pair[0]) or "test"]),
    ):
        part = part_named(stem)
        for line, name in _names(file):
            before = parts.get(name)
            if part is None or before == part or (stem == _BOTH and before == "validation"):
                continue
            if before is not None:
                raise DataError(
                    f"{file}, line {line}: '{name}' is in the {NAMES[before]} part as well "
                    f"({lines[name]})",
                    "take it out of one of them: test only on images that are not trained on",
                )
            parts[name], lines[name] = part, f"{file}, line {line}"
    return ImageSets(parts, lines)


def _names(file: Path) -> Iterator[tuple[int, str]]:
    """The images that a file lists, by line: the first word, without folders and suffix."""
    for number, line in enumerate(file_text(file).splitlines(), 1):
        if words := line.split():
            path = Path(words[0].replace("\\", "/"))
            suffixed = path.suffix.lower() in SUFFIXES | HEIF_SUFFIXES | {".xml"}
            yield number, path.stem if suffixed else path.name
