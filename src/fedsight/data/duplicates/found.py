"""Finds the copies in an opened data set: equal images or texts, and images that look alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.core.files import content
from fedsight.data.base import ArrayImages, Dataset, Images, Indices, Part
from fedsight.data.duplicates.alike import Numbers, joined, sets_alike
from fedsight.data.duplicates.counts import Copies, Duplicates, Pair
from fedsight.data.duplicates.prints import Prints, prints_of
from fedsight.data.images.decode import AS_STORED, Origin, full_size
from fedsight.data.images.dicom import Frame
from fedsight.data.images.disk import LazyImages, NamedArray
from fedsight.data.parts import NAMES, PartName

EXAMPLES = 20  # pairs that are listed


@dataclass(frozen=True)
class Copied:
    """All images of a data set, part by part, and which of them are copies of one another.

    Sets are numbered by their first image, and images by their place in `places`.
    """

    dataset: Dataset
    places: list[tuple[PartName, int]]  # [n] the part, and the number in it
    exact: Numbers  # [n] the set of equal images
    near: Numbers  # [n] the set of images that look alike, which joins the equal ones
    blank: npt.NDArray[np.bool_]  # [n] images of one colour, of which equal ones are no leak
    # by part: equal for images with the same labels, as the files write them; empty: not known
    entries: Mapping[PartName, Indices] = field(default_factory=dict)

    @cached_property
    def duplicates(self) -> Duplicates:
        """How many copies there are, with examples."""
        every = np.arange(len(self.exact))
        return Duplicates(self._copies(self.exact, every), self._copies(self.near, self.exact))

    @cached_property
    def told_apart(self) -> Numbers:
        """As `exact`, but blank images are copies of none [n]."""
        return np.where(self.blank, np.arange(len(self.exact)), self.exact)

    @cached_property
    def grave(self) -> Copies:
        """The equal images that are not blank."""
        return self._copies(self.told_apart, np.arange(len(self.exact)))

    def labelled(self, image: int) -> object:
        """What can be compared of an image's label; None for boxes and masks."""
        part = self._part(image)
        name, index = self.places[image]
        if self.entries:
            return int(self.entries[name][index])
        if self._classed(part):
            return int(part.labels[index])
        if part.targets is not None and part.targets.dim() == 2:  # several labels
            return tuple(part.targets[index].tolist())
        return None

    def pair(self, one: int, other: int) -> Pair:
        """Both images, with part and label."""
        return Pair(
            *(f"{self._told(one, shown)} and {self._told(other, shown)}" for shown in (True, False))
        )

    def _part(self, image: int) -> Part:
        found = part_of(self.dataset, self.places[image][0])
        assert found is not None
        return found

    def _told(self, image: int, shown: bool) -> str:
        part, images = self.places[image][0], self._part(image).images
        index = self.places[image][1]
        files = originals(images)
        name = files.shown(index) if shown and files is not None else images.name(index)
        of, classes = "", self.dataset.classes
        if len(classes) > 1 and self._classed(self._part(image)):
            of = f", {classes[int(self._part(image).labels[index])]}"
        return f"'{name}' ({NAMES[part]}{of})"

    @staticmethod
    def _classed(part: Part) -> bool:
        """Whether each image has one class."""
        return part.targets is None or part.targets.dim() == 1

    def _copies(self, sets: Numbers, same: Numbers) -> Copies:
        """The sets of images that differ in `same`, counted."""
        counts = dict.fromkeys(("parts", "labels", "sites", "groups"), 0)
        total = 0
        pairs: dict[str, list[tuple[int, int]]] = {key: [] for key in (*counts, "rest")}
        for members in members_of(sets):
            kinds = {int(same[one]) for one in members}
            if len(kinds) < 2:
                continue
            total += len(kinds) - 1
            held = list(self.held_out(members, same))
            counts["parts"] += len(held)
            pairs["parts"] += held[:EXAMPLES]
            plain = not held
            for key, told in self._properties.items():
                pair = _unequal(members, told)
                if pair is not None:
                    counts[key] += 1
                    pairs[key].append(pair)
                    plain = False
            if plain:
                pairs["rest"].append((members[1], members[0]))
        chosen = list(dict.fromkeys(pair for found in pairs.values() for pair in found))
        examples = tuple(self.pair(*pair) for pair in chosen[:EXAMPLES])
        parts, labels, sites, groups = counts.values()
        return Copies(total, parts, labels, sites, groups, examples)

    @property
    def _properties(self) -> dict[str, Callable[[int], object]]:
        return {"labels": self.labelled, "sites": self._site, "groups": self._group}

    def _site(self, image: int) -> object:
        sites = self._part(image).sites
        return None if sites is None else sites[self.places[image][1]]

    def _group(self, image: int) -> object:
        groups = self._part(image).groups
        return None if groups is None else groups[self.places[image][1]]

    def held_out(self, members: Sequence[int], same: Numbers) -> Iterator[tuple[int, int]]:
        """The images of a set of which an earlier part has another, each with the first such.

        Those with equal `same` do not count as another, unless they are different images.
        """
        first: dict[PartName, dict[int, int]] = {}
        for one in members:
            first.setdefault(self.places[one][0], {}).setdefault(int(same[one]), one)
        order = list(NAMES)
        for one in members:
            for part in order[: order.index(self.places[one][0])]:
                found = first.get(part, {})
                other = next((i for key, i in found.items() if key != int(same[one])), None)
                if other is not None:
                    yield one, other
                    break


def _unequal(members: Sequence[int], told: Callable[[int], object]) -> tuple[int, int] | None:
    """Two of `members` of which different things are told."""
    known = [(one, value) for one in members if (value := told(one)) is not None]
    other = next((one for one, value in known if value != known[0][1]), None)
    return None if other is None else (other, known[0][0])


def members_of(sets: Numbers) -> Iterator[list[int]]:
    """The members of each set with more than one."""
    order = np.argsort(sets, kind="stable")
    starts = np.flatnonzero(np.diff(sets[order], prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if end - start > 1:
            yield order[start:end].tolist()


def part_of(dataset: Dataset, name: PartName) -> Part | None:
    """A part by its name."""
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[name]


def copied(dataset: Dataset, entries: Mapping[PartName, Indices] | None = None) -> Copied | None:
    """Which images of `dataset` are copies of one another; None if they were not decoded.

    Images are equal if their files are, or their pixels at full size. Where nothing but numbers is
    known (arrays, texts), these are compared. `entries` are by part, and equal [n] for images with
    the same labels as the files write them: a program chooses the classes, and with them how many
    copies have two. None: the classes are compared.
    """
    prints: list[Prints] = []
    places: list[tuple[PartName, int]] = []
    images: list[tuple[Images, int]] = []
    for name in NAMES:
        part = part_of(dataset, name)
        if part is None:
            continue
        found = _prints(part.images, dataset.preprocess.modality == "image")
        if found is None:
            return None
        prints.append(found)
        places += [(name, index) for index in range(len(part))]
        images += [(part.images, index) for index in range(len(part))]
    exact = _equal([digest for one in prints for digest in one.digests], images)
    looks = [one.looks for one in prints if one.looks is not None]
    near = exact
    if looks:
        near = sets_alike(torch.cat(looks))
        near = joined(near, np.arange(len(exact)), exact)
    blank = np.concatenate([one.blank for one in prints])
    return Copied(dataset, places, exact, near, blank, entries or {})


def originals(images: Images) -> LazyImages | None:
    """Where images came from, if that is known."""
    if isinstance(images, NamedArray):
        return images.files
    return images if isinstance(images, LazyImages) else None


def _prints(images: Images, seen: bool) -> Prints | None:
    taken: Prints | None = getattr(images, "prints", None)
    if taken is None and isinstance(images, ArrayImages):
        return prints_of(images.pixels, seen)
    return taken


def _equal(digests: Sequence[bytes], images: Sequence[tuple[Images, int]]) -> Numbers:
    """The set of each image [n]: those with one digest that are equal at full size, too."""
    alike: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        alike.setdefault(digest, []).append(place)
    sets = np.arange(len(digests), dtype=np.int64)
    for members in alike.values():
        if len(members) < 2:
            continue
        first: dict[bytes, int] = {}
        for place, key in zip(members, _keys([images[one] for one in members]), strict=True):
            sets[place] = first.setdefault(key, place)
    return sets


def _keys(images: Sequence[tuple[Images, int]]) -> list[bytes]:
    """Equal for images that are equal at full size; files with the same bytes are decoded once."""
    pixels: dict[bytes, bytes] = {}
    found = []
    for one, index in images:
        files = originals(one)
        if files is None:
            found.append(b"")
            continue
        try:
            origin = files.origin(index)
            raw = _raw(origin)
            found.append(raw)
            pixels.setdefault(raw, b"")
        except (OSError, DataError):
            found.append(f"unreadable {len(found)}".encode())
    if len(pixels) < 2:
        return found
    for (one, index), raw in zip(images, found, strict=True):
        files = originals(one)
        if files is not None and pixels.get(raw) == b"":
            pixels[raw] = _pixels(files.origin(index)) or raw
    return [pixels.get(raw, raw) for raw in found]


def _raw(origin: Origin) -> bytes:
    """The digest of an image as it is stored."""
    seen = hashlib.blake2b(digest_size=16)
    if isinstance(origin, Frame):
        seen.update(f"frame {origin.number}\n".encode())
        origin = origin.path
    if isinstance(origin, bytes):
        seen.update(origin)
    elif isinstance(origin, Image.Image):
        seen.update(f"{origin.mode} {origin.size}\n".encode() + origin.tobytes())
    else:
        seen.update(content(Path(origin)))
    return seen.digest()


def _pixels(origin: Origin) -> bytes | None:
    """The digest of an image's pixels, whatever its file's format; None if it cannot be read."""
    try:
        pixels = full_size(origin, AS_STORED)
    except DataError:
        return None
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]  # grey in a file for colours
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * 257
    seen = hashlib.blake2b(f"{pixels.shape}\n".encode(), digest_size=16)
    seen.update(np.ascontiguousarray(pixels).data)
    return seen.digest()
