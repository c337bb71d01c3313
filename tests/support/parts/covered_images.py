"""A plug-in: test images of three sites for each task whose answers are made large enough. A folder
named for a site has its images, as a deployed one opens them; `all` has those of all."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsight.data.base import ArrayImages, Dataset, Location, Part, Source, sources
from fedsight.data.detection import boxes

Kind = Literal["ordinal", "multilabel", "segment", "detect", "faces"]
SIDE = 16
CLASSES = ("a", "b", "c")
TESTS = {"east": 36, "north": 48, "south": 40, "west": 32}
TRAINED = 6
OF_A_PERSON = 2  # images, which follow each other
PEOPLE = tuple(f"{site} {number}" for site in TESTS for number in range(30))


class _Images(ArrayImages):
    """Images with names that do not depend on which others are opened."""

    def __init__(self, pixels: Tensor, names: list[str]) -> None:
        super().__init__(pixels, "covered")
        self._names = names

    def name(self, index: int) -> str:
        return self._names[index]


@sources.add("covered")
class Covered(Source):
    """The images [1, 16, 16] of the site that the folder is named for, or of `all`."""

    path: Location
    kind: Kind = "ordinal"
    grouped: bool = False  # four images that follow each other are a patient's

    def open(self) -> Dataset:
        """The images of a site, or of all."""
        sites = [*TESTS] if self.path.name == "all" else [self.path.name]
        train = self._part("train", dict.fromkeys(sites, TRAINED))
        test = self._part("test", {site: TESTS[site] for site in sites})
        names = PEOPLE if self.kind == "faces" else CLASSES
        return Dataset(train, test, names, self.preprocess(1, SIDE, SIDE))

    def _part(self, name: str, counts: Mapping[str, int]) -> Part:
        places = [(site, number) for site, count in counts.items() for number in range(count)]
        found = [_drawn(self.kind, name, *place) for place in places]
        names = [f"{site}/{name}/{number:04d}" for site, number in places]
        pixels = torch.stack([pixels for pixels, _, _ in found])
        truth = [target for _, _, target in found]
        targets = None
        if self.kind == "detect":
            targets = boxes.pack(truth, [[]] * len(truth))
        elif self.kind in ("multilabel", "segment"):
            targets = torch.stack(truth)
        groups = None
        if self.grouped:
            groups = [f"{site}{number // 4}" for site, number in places]
        labels = np.array([label for _, label, _ in found], np.int64)
        sites = [site for site, _ in places] if self.path.name == "all" else None
        return Part(_Images(pixels, names), labels, sites, targets, groups)


def _drawn(kind: Kind, part: str, site: str, number: int) -> tuple[Tensor, int, Any]:
    """An image, its class number, and its target."""
    rng = np.random.default_rng(zlib.crc32(f"{kind} {part} {site} {number}".encode()))
    pixels = rng.random((1, SIDE, SIDE)) * 0.6
    label = int(rng.integers(len(CLASSES)))
    if kind == "faces":
        person = number // OF_A_PERSON + (0 if part == "train" else 4)
        label = PEOPLE.index(f"{site} {person}")
        pixels += np.kron(np.random.default_rng(label).random((1, 4, 4)), np.ones((4, 4))) * 0.4
        return torch.from_numpy(pixels.astype(np.float32)), label, None
    pixels += 0.1 * label
    target: Any = None
    if kind == "multilabel":
        target = torch.from_numpy(rng.integers(0, 2, len(CLASSES)).astype(np.float32))
    elif kind == "segment":
        mask = rng.integers(0, len(CLASSES), (SIDE, SIDE)) * (number % 5 > 0)  # some show nothing
        target = torch.from_numpy(mask.astype(np.uint8))
    elif kind == "detect":
        some = rng.integers(0, 2, (int(rng.integers(0, 4)), 2)) * 4.0
        target = [(float(rng.integers(len(CLASSES))), x, y, x + 12, y + 12) for x, y in some]
    return torch.from_numpy(pixels.astype(np.float32)), label, target
