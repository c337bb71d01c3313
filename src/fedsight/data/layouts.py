"""Which part of a data set the folders of an image name, wherever in the path they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsight.core.errors import DataError
from fedsight.data.parts import KNOWN, NAMES, PartName, meant, named_in, part_named
from fedsight.data.single_draws import refuse_other_tests

Folders = tuple[str, ...]  # the folders between the root and an image
Reader = Callable[[str], PartName | None]  # the part that a name says
PLAIN = frozenset({"images", "imgs", "image", "img", "jpegimages"})  # say nothing else
_CURE = f"rename it if it is a part ({KNOWN}), or move it elsewhere"


@dataclass(frozen=True)
class Place:
    """The part that an image's folders name, and the folders that say something else."""

    part: PartName | None
    folders: Folders


@dataclass(frozen=True)
class Arrangement:
    """The place of each folder that holds images, and what is to be said about it."""

    places: Mapping[Folders, Place]
    notes: tuple[str, ...] = ()


def arranged(folders: Iterable[Folders], root: Path, levels: int, exact: bool) -> Arrangement:
    """Where the images in `folders`, below `root`, belong.

    Parts may stand at any depth, but all at the same: `train/site/class`, `site/train/class`,
    `class/train`, or all of that in a folder of its own. `levels` is how many folders must be left
    (site and class: 2); with `exact`, no more than these. The caller judges images with fewer or
    more. Raises DataError for a folder beside parts that names none, naming what was probably
    meant, and for parts without one for training.
    """
    known = sorted(set(folders))
    read: Reader = part_named
    depth = _depth_of_parts(known, read, False)
    if depth is None and (loose := _depth_of_parts(known, named_in, exact)) is not None:
        depth, read = loose, named_in
    notes: tuple[str, ...]
    if depth is None:
        depth, notes = _lone_part(known, root, exact)
        places = {one: Place(None, _without(one, depth)) for one in known}
    else:
        found: dict[Folders, Place] = {}
        names: dict[str, PartName] = {}
        for one in known:
            part = read(one[depth]) if len(one) > depth else None
            if part is None:
                raise _outside(one, depth, known, root)
            names[one[depth]] = part
            found[one] = Place(part, _without(one, depth))
        if "train" not in names.values():
            raise _no_training(root, names)
        said = ", ".join(f"'{name}' ({NAMES[names[name]]})" for name in sorted(names))
        places, notes = found, (f"folders of parts: {said}",)
    return _unwrapped(places, notes, levels, exact)


def _depth_of_parts(known: Sequence[Folders], read: Reader, exact: bool) -> int | None:
    """How many folders are above those of the parts, as `read` knows them; None without parts.

    With `exact`, the folders that images lie in are those of classes, and no parts.
    """
    for depth in range(max(map(len, known), default=0)):
        if exact and any(len(one) == depth + 1 for one in known):
            return None
        for names in _children(known, depth).values():
            found = {read(name) for name in names} - {None}
            if "train" in found and len(found) > 1:
                return depth
    return None


def _children(known: Sequence[Folders], depth: int) -> dict[Folders, list[str]]:
    """The names of the folders at `depth`, sorted, by what is above them."""
    found: dict[Folders, dict[str, None]] = {}
    for one in known:
        if len(one) > depth:
            found.setdefault(one[:depth], {})[one[depth]] = None
    return {above: list(names) for above, names in found.items()}


def _outside(one: Folders, depth: int, known: Sequence[Folders], root: Path) -> DataError:
    """The error for images that lie in the folder of no part."""
    if len(one) <= depth:
        return DataError(
            f"'{root.joinpath(*one)}' holds images beside the folders of parts",
            f"move them into the folder of their part ({KNOWN})",
        )
    above = one[:depth]
    return _misnamed(one[depth], _children(known, depth)[above], root.joinpath(*above))


def _lone_part(
    known: Sequence[Folders], root: Path, exact: bool
) -> tuple[int | None, tuple[str, ...]]:
    """The depth of a training folder that has no part beside it, and what to say about it.

    Raises DataError for folders of another name beside a part, and for parts without training. The
    folders that images lie in are classes if `exact`, and a class may be called as a part (a
    `train` beside a `bus`), but not if all of them are.
    """
    for depth in range(max(map(len, known), default=0)):
        for above, names in _children(known, depth).items():
            parts = {name: part for name in names if (part := part_named(name))}
            odd = [name for name in names if name not in parts]
            if exact and any(len(one) == depth + 1 and one[:depth] == above for one in known):
                alike = len(names) > 1 and all(map(_held_out, odd))
                if not alike:
                    continue
            if parts and odd:
                raise _misnamed(odd[0], names, root.joinpath(*above))
            if parts and "train" not in parts.values():
                raise _no_training(root.joinpath(*above), parts)
        named = {one[depth] if len(one) > depth else "" for one in known}
        if all(part_named(name) == "train" for name in named):
            is_class = exact and any(len(one) == depth + 1 for one in known)
            if not is_class:
                refuse_other_tests(str(root), "test images would be drawn from the others")
                words = " and ".join(f"'{name}'" for name in sorted(named))
                return depth, (f"{words} is the only part: test images are drawn from it",)
    return None, ()


def _held_out(name: str) -> bool:
    """Whether a name is close to that of a part other than the training part."""
    close = meant(name)
    return close is not None and part_named(close) != "train"


def _misnamed(odd: str, names: Sequence[str], folder: Path) -> DataError:
    beside = " and ".join(f"'{name}'" for name in names if named_in(name))
    close = meant(odd)
    hint = f"did you mean '{close}'? " if close else ""
    return DataError(f"'{folder}' has '{odd}' beside {beside}", hint + _CURE)


def _no_training(folder: Path, parts: Mapping[str, PartName]) -> DataError:
    found = " and ".join(f"'{name}'" for name in sorted(parts))
    return DataError(
        f"'{folder}' has no training part (found: {found})",
        "add the folder of the training part, or name the folder itself if it is not a part",
    )


def _without(one: Folders, depth: int | None) -> Folders:
    return one if depth is None else (*one[:depth], *one[depth + 1 :])


def _unwrapped(
    places: Mapping[Folders, Place], notes: tuple[str, ...], levels: int, exact: bool
) -> Arrangement:
    """Without folders that hold everything else, as an extracted archive has them."""
    rest = {one: place.folders for one, place in places.items()}
    dropped: list[str] = []
    while rest and all(len(one) > levels for one in rest.values()):
        names = {one[0] for one in rest.values()}
        if len(names) > 1 or (not exact and len({one[1:2] for one in rest.values()}) < 2):
            break
        dropped.append(names.pop())
        rest = {key: one[1:] for key, one in rest.items()}
    if exact:
        rest = {key: _without_images(one, levels) for key, one in rest.items()}
    if dropped and levels:
        notes = (*notes, f"'{'/'.join(dropped)}' holds everything, and names nothing")
    return Arrangement({key: Place(places[key].part, one) for key, one in rest.items()}, notes)


def _without_images(one: Folders, levels: int) -> Folders:
    """Without an `images` in the folder of a class, as Tiny ImageNet has it."""
    if len(one) == levels + 1 and one[-1].casefold() in PLAIN:
        return one[:-1]
    return one
