"""Refuses copies of images, leaves them out, or says how many there are, as a source wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
import torch

from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Dataset, Images, Indices, Part
from fedsight.data.duplicates.alike import Numbers
from fedsight.data.duplicates.counts import Copies, Handling
from fedsight.data.duplicates.found import Copied, copied, members_of, part_of
from fedsight.data.images.disk import LazyImages, NamedArray
from fedsight.data.parts import NAMES, PartName
from fedsight.data.text.texts import Texts

T = TypeVar("T")
NOT_LOOKED_FOR = "copies were not looked for, because data.verify is false and nothing was decoded"


class HandlesCopies(Protocol):
    """The settings of a source."""

    @property
    def duplicates(self) -> Handling:
        """What to do with equal images."""
        ...


def near_handling(source: HandlesCopies) -> Handling:
    """What to do with images that look alike; texts have no look."""
    found: Handling = getattr(source, "near_duplicates", "keep")
    return found


def looked_for(
    opened: Dataset, source: HandlesCopies, entries: Mapping[PartName, Indices] | None = None
) -> Copied | None:
    """The copies in `opened`, unless the source wants none looked for, or nothing was decoded.

    `entries` are as in `copied`.
    """
    if source.duplicates == near_handling(source) == "keep":
        return None
    found = copied(opened, entries)
    for part in (opened.train, opened.validation, opened.test):
        if part is not None and isinstance(part.images, LazyImages | NamedArray | Texts):
            part.images.prints = None  # they have served, and would travel to workers
    return found


def handled(opened: Dataset, found: Copied | None, source: HandlesCopies) -> Dataset:
    """The data set without what is to be left out, and with what is to be said about copies.

    Raises DataError for equal images in two parts or with two labels, and for images that look
    like one in an earlier part, if the settings refuse them.
    """
    exact, near = source.duplicates, near_handling(source)
    if found is None:
        return opened if exact == near == "keep" else _saying(opened, (NOT_LOOKED_FOR,))
    duplicates, things = found.duplicates, opened.preprocess.modalities
    if exact == "error":
        _refuse(found.grave, "data.duplicates", things, "are equal", True)
    if near == "error":
        _refuse(duplicates.near, "data.near_duplicates", things, "look alike", False)
    if exact == "keep":
        duplicates = replace(duplicates, exact=Copies())
    if near == "keep":
        duplicates = replace(duplicates, near=Copies())
    opened = _saying(replace(opened, duplicates=duplicates), duplicates.sentences(things))
    left_out = Counter[str]()
    dropped: set[int] = set()
    if exact == "drop":
        copies, torn = _repeated(found)
        left_out += Counter({"copies": len(copies), "copies with two labels": len(torn)})
        dropped = copies | torn
    if near == "drop":
        alike = _like_held_out(found) - dropped
        left_out["look like one held out"] += len(alike)
        dropped |= alike
    if not dropped:
        return opened
    return _without(opened, found, dropped, {k: n for k, n in left_out.items() if n})


def _refuse(found: Copies, setting: str, things: str, how: str, labels: bool) -> None:
    """DataError for copies in two parts, and with `labels` for those with two labels."""
    if found.across_parts:
        cause = f"{found.pairs[0].shown} {how}; {things} that are held out but have a copy in an "
        cause += f"earlier part: {found.across_parts:,}"
        cure = "take the copies out of one part (the test part must be new to the model)"
    elif labels and found.two_labels:
        pair = found.pairs[0].shown
        cause = f"{pair} {how}, but have two labels; {things} of which there are such copies: "
        cause += f"{found.two_labels:,}"
        cure = "give each the right label"
    else:
        return
    raise DataError(
        cause,
        f'{cure}, or leave copies out with {setting} = "drop", or allow them with "report", which '
        "lets `fedsight data inspect` list them",
    )


def _repeated(found: Copied) -> tuple[set[int], set[int]]:
    """What to drop of equal images: all but one, of the last part; and all with two labels."""
    copies: set[int] = set()
    torn: set[int] = set()
    order = list(NAMES)
    for members in members_of(found.exact):
        shown = not found.blank[members[0]]
        if shown and len({found.labelled(one) for one in members}) > 1:
            torn.update(members)
            continue
        kept = max(members, key=lambda one: (order.index(found.places[one][0]), -one))
        copies.update(one for one in members if one != kept)
    return copies, torn


def _like_held_out(found: Copied) -> set[int]:
    """The images that look like one of a later part."""
    order = list(NAMES)
    alike: set[int] = set()
    for members in members_of(found.near):
        ranks = {one: order.index(found.places[one][0]) for one in members}
        last = max(ranks.values())
        alike.update(one for one, rank in ranks.items() if rank < last)
    return alike


def _without(
    opened: Dataset, found: Copied, dropped: set[int], left_out: dict[str, int]
) -> Dataset:
    parts: dict[PartName, Part] = {}
    for name in NAMES:
        part = part_of(opened, name)
        if part is None:
            continue
        kept = [
            index
            for place, (of, index) in enumerate(found.places)
            if of == name and place not in dropped
        ]
        parts[name] = only(part, np.array(kept, dtype=np.int64))
    said = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
    opened = replace(
        opened,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        passed_over={**opened.passed_over, **left_out},
    )
    return _saying(opened, (f"left out: {said}",))


def only(part: Part, indices: Indices) -> Part:
    """The images of a part at `indices`."""
    chosen = torch.from_numpy(indices)
    return Part(
        _only_images(part.images, indices),
        part.labels[indices],
        _at(part.sites, indices),
        None if part.targets is None else part.targets[chosen],
        _at(part.groups, indices),
    )


def _only_images(images: Images, indices: Indices) -> Images:
    if not isinstance(images, LazyImages | NamedArray) and not hasattr(images, "only"):
        assert isinstance(images, ArrayImages)
        return ArrayImages(images.pixels[torch.from_numpy(indices)], images.origin)
    found: Images = images.only(indices)
    return found


def _at(values: Sequence[T] | None, indices: Indices) -> list[T] | None:
    return None if values is None else [values[index] for index in indices]


def _saying(opened: Dataset, sentences: tuple[str, ...]) -> Dataset:
    return replace(opened, notes=(*opened.notes, *sentences))


def together(found: Copied, members: dict[PartName, Indices], count: int) -> Numbers:
    """The set of equal images of each of `count` records, of which each part has `members`."""
    records = np.array([members[part][index] for part, index in found.places], dtype=np.int64)
    sets = np.arange(count, dtype=np.int64)
    sets[records] = records[found.told_apart]
    return sets
