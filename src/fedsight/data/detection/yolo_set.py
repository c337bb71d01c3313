"""YOLO data sets: which images belong to which part, as `data.yaml`, lists or folders say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsight.core.errors import DataError
from fedsight.data.detection.yolo import read_names
from fedsight.data.layouts import PLAIN, Folders, arranged
from fedsight.data.listing import is_there, tree
from fedsight.data.parts import NAMES, PartName, meant, part_named
from fedsight.data.reading import file_bytes, file_text

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class YoloImage:
    """An image, its part, the folders that may name its site, and what named it."""

    path: Path
    part: PartName | None
    folders: Folders
    where: str = ""  # the file and line or key; "": its folder


@dataclass(frozen=True)
class YoloSet:
    """The images, the class names if there are any, and what to say about them."""

    root: Path  # below it a folder called `images` has one called `labels` beside it
    images: tuple[YoloImage, ...]
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    unlisted: int = 0  # images in the folder that no list names
    keypoints: bool = False  # whether points follow the box in each line


def yolo_set(path: Path, by_site: bool) -> YoloSet:
    """The data set at `path`: a folder, or its `data.yaml`.

    The parts are those of the keys `train`, `val` and `test` of the YAML (a folder, a list of
    folders, or text files that list images), else of files `train.txt` and so on, else of the
    folders' names. Raises DataError naming file and line or key, and as `layouts.arranged` does.
    """
    root = path.parent if path.is_file() else path
    table, file = _described(path)
    found = _listed(root, table, file, by_site)
    return replace(found, keypoints=bool(table.get("kpt_shape")))


def _listed(root: Path, table: dict[str, Any], file: Path | None, by_site: bool) -> YoloSet:
    """As `yolo_set`, for what the YAML `file` says in `table`."""
    names = _names(table, file) if file is not None else _class_files(root)
    keys = _parts_of(table, file)
    if keys and file is not None:
        base, listed = _of_keys(keys, table, file, root)
    else:
        base, listed = root, _of_lists(root)
    if not listed:
        return _of_folders(root, names, by_site)
    _refuse_two_parts(listed)
    only = {image.part for image in listed} == {"train"}
    if only:  # a test part is drawn
        listed = [YoloImage(one.path, None, one.folders, one.where) for one in listed]
    told = {one.path.resolve() for one in listed}
    others = [one for one in _below(root) if one.resolve() not in told]
    source = f"'{file}'" if keys else f"the lists in '{root}'"
    notes = [f"parts as {source} says" if keys else f"parts as {source} say"]
    if only:
        notes.append(f"{source} names no image for testing: test images are drawn from the others")
    return YoloSet(base, tuple(listed), names, tuple(notes), len(others))


def _parts_of(table: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """The keys of a YAML that name parts (`train`, `val`, also `valid` or `Test`).

    Raises DataError for a misspelt one, and for two that name one part.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        part = part_named(str(key))
        lists = isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(one, str) for one in value)
        )
        if not value or not lists:
            continue
        if part is not None:
            double = [one for one in found if part_named(one) == part]
            if double:
                raise DataError(
                    f"{file}: '{double[0]}' and '{key}' both name the {NAMES[part]} part",
                    "keep one of them",
                )
            found[str(key)] = value
        elif file is not None and _leads(value, file) and (close := meant(str(key))):
            raise DataError(
                f"{file}: the key '{key}' names no part",
                f"did you mean '{close}'? write train, val and test",
            )
    return found


def _leads(value: Any, file: Path) -> bool:
    """Whether the value of a key is a path to something, from the folder of its `file`."""
    return isinstance(value, str) and value != "." and (file.parent / value).exists()


def _described(path: Path) -> tuple[dict[str, Any], Path | None]:
    """The content of the YAML file at or in `path` that describes the data set, and where it is."""
    if path.is_file():
        return _yaml(path), path
    for pattern in ("*", "*/*", "*/*/*"):
        files = sorted(file for file in path.glob(pattern) if file.suffix.lower() in _SUFFIXES)
        found = [(table, file) for file in files if (table := _yaml(file)).keys() & {"names"}]
        if len(found) == 1:
            return found[0]
        if found:
            first = found[0][0]["names"]
            if any(table["names"] != first for table, _ in found):
                raise DataError(
                    f"'{found[0][1]}' and '{found[1][1]}' both describe a data set",
                    "give one of them as data.path, or give them the same names",
                )
            shape = found[0][0].get("kpt_shape")
            return {"names": first, "kpt_shape": shape}, found[0][
                1
            ]  # such as one for each site: the folders decide
    return {}, None


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file_bytes(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"'{file}' is not YAML: {said}", "correct the file") from error
    if not isinstance(content, dict):
        raise DataError(
            f"'{file}' does not describe a data set", "write the keys names, train and val in it"
        )
    return content


def _names(table: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    """The class names: a list, or a table by number without gaps."""
    names = table.get("names")
    if names is None:
        return _class_files(file.parent)
    if isinstance(names, dict):
        numbers = sorted(names, key=str) if any(not isinstance(n, int) for n in names) else None
        if numbers is not None or sorted(names) != list(range(len(names))):
            raise DataError(
                f"{file}: the keys of 'names' are not 0 to {len(names) - 1}",
                "name every class by its number, from 0 on",
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: 'names' is not a list of class names", "write names: [cat, dog]")
    count = table.get("nc", len(names))
    if count != len(names):
        raise DataError(
            f"{file}: 'nc' is {count}, but 'names' has {len(names)} names",
            "name every class, or correct 'nc'",
        )
    return tuple(str(name).strip() for name in names)


def _class_files(root: Path) -> tuple[str, ...] | None:
    """The names in `classes.txt` or `obj.names`: of the folder, of `labels`, or beside `images`."""
    places = [root, root / "labels", *sorted(one for one in root.glob("*") if one.is_dir())]
    if root.name.casefold() in PLAIN:
        places += [root.parent, root.parent / "labels"]
    for place in places:
        if (names := read_names(place)) is not None:
            return names
    return None


def _of_keys(
    keys: Mapping[str, Any], table: Mapping[str, Any], file: Path, root: Path
) -> tuple[Path, list[YoloImage]]:
    """The folder that the YAML's paths are relative to, and the images of its keys."""
    stated = Path(str(table.get("path") or "."))
    bases = [file.parent / stated, file.parent]
    found: list[YoloImage] = []
    for key, value in keys.items():
        part = part_named(key)
        for entry in value if isinstance(value, list) else [value]:
            where = f"{file}, '{key}'"
            target = _target(str(entry), bases)
            if target is None:
                raise DataError(
                    f"{where}: there is no '{entry}' in '{bases[0]}'",
                    "correct the path (relative to 'path', or to the file's folder), or remove "
                    "the key",
                )
            if is_there(target):
                images = list(_lines(target, part, bases))
            else:
                images = [YoloImage(image, part, (), where) for image in _below(target)]
            if not images:
                raise DataError(f"{where}: '{target}' has no images", "correct the path")
            found += images
    base = bases[0] if bases[0].is_dir() else bases[1]
    sites = [
        YoloImage(one.path, one.part, _site_folders(one.path, (root, base)), one.where)
        for one in found
    ]
    return base, sites


def _refuse_two_parts(images: Sequence[YoloImage]) -> None:
    """DataError for an image in two parts: it would be tested on after training on it."""
    first: dict[Path, YoloImage] = {}
    for image in images:
        before = first.setdefault(image.path.resolve(), image)
        if before.part != image.part and image.part is not None and before.part is not None:
            raise DataError(
                f"{image.where}: '{image.path}' is in the {NAMES[image.part]} part, and in the "
                f"{NAMES[before.part]} part as well ({before.where})",
                "give each part images of its own; without 'val' and 'test' a test part is drawn",
            )


def _site_folders(image: Path, bases: Sequence[Path]) -> Folders:
    """The folders of a listed image that say neither part nor `images`."""
    for base in bases:
        if image.resolve().is_relative_to(base.resolve()):
            below = image.resolve().relative_to(base.resolve()).parts[:-1]
            return tuple(one for one in below if not _says_nothing(one) and not part_named(one))
    return ()


def _target(written: str, bases: Sequence[Path]) -> Path | None:
    """What a path in a YAML means: below its `path` or folder, also for `../train/images`, which
    Roboflow writes for `train/images`, and for a path of another machine."""
    parts = Path(written.replace("\\", "/")).parts
    options = [base / written for base in bases]
    options += [base.joinpath(*parts[at:]) for at in range(1, len(parts)) for base in bases]
    return next((one for one in options if one.exists()), None)


def _of_lists(root: Path) -> list[YoloImage]:
    """The images that `train.txt`, `val.txt` and so on list; none without such files."""
    images = {path.with_suffix("") for path in _below(root)}
    files: list[tuple[Path, PartName]] = []
    for file in sorted(root.glob("*")):
        part = part_named(file.stem) if file.suffix.lower() == ".txt" else None
        if part is not None and is_there(file) and file.with_suffix("") not in images:
            files.append((file, part))
    found = [one for file, part in files for one in _lines(file, part, [root])]
    return [
        YoloImage(one.path, one.part, _site_folders(one.path, [root]), one.where) for one in found
    ]


def _lines(file: Path, part: PartName | None, bases: Sequence[Path]) -> Iterator[YoloImage]:
    """The images that a text file lists, a path a line."""
    for number, line in enumerate(file_text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        image = _target(line.strip(), [file.parent, *bases])
        if image is None or not is_there(image):
            raise DataError(
                f"{where}: there is no image '{line.strip()}'",
                "correct the path (relative to the file's folder) or remove the line",
            )
        yield YoloImage(image, part, (), where)


def _of_folders(root: Path, names: tuple[str, ...] | None, by_site: bool) -> YoloSet:
    """The parts that the folders' names say, such as `images/train` or `train/images`."""
    files = {
        folders: (tuple(one for one in folders if not _says_nothing(one)), found)
        for folders, found in tree(root).items()
        if found
    }
    layout = arranged((bare for bare, _ in files.values()), root, int(by_site), exact=False)
    images = [
        YoloImage(Path(file), layout.places[bare].part, layout.places[bare].folders)
        for bare, found in files.values()
        for file in found
    ]
    images.sort(key=lambda image: image.path)
    return YoloSet(root, tuple(images), names, layout.notes)


def _says_nothing(folder: str) -> bool:
    return folder.casefold() in PLAIN


def _below(root: Path) -> list[Path]:
    return sorted(Path(file) for found in tree(root).values() for file in found)
