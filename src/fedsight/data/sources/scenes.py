"""Composed scenes: real garments on real textures, with exact boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field

from fedsight.core.draws import Draws, draws
from fedsight.core.errors import DataError, Problem
from fedsight.core.registry import nearest
from fedsight.data.base import ArrayImages, Dataset, Part, Source, Words, sources
from fedsight.data.detection.boxes import Row, joined, majority, pack
from fedsight.data.partition import site_name
from fedsight.data.sources.samples import FashionMnist12k

Grey = npt.NDArray[np.uint8]
INK = 16  # grey values from which a pixel is the garment's, not the black around it
TRIES = 20  # for a place that covers no other garment by more than a tenth
_COVERED = 0.1


@dataclass(frozen=True)
class Material:
    """What the scenes of one part are composed of."""

    garments: tuple[Grey, ...]  # [n, 28, 28] of each class
    textures: tuple[Grey, ...]  # [h, w]


@sources.add(
    "scenes", licence="MIT (garments), CC0 (textures)", images="composed, grey, 10 classes"
)
class Scenes(Source):
    """Composed, not photographed: real garments (Fashion-MNIST) on real textures, exact boxes.

    Each site has one texture and its own mix of garments. Training scenes use training garments
    and the upper half of a texture, test scenes use test garments and its lower half; all classes
    are equally frequent in test scenes.
    """

    sample: ClassVar[bool] = True

    sites: int = Field(6, ge=1, le=200)
    train: int = Field(200, ge=1)  # scenes of each site
    test: int = Field(40, ge=1)  # scenes with each site's texture
    size: int = Field(64, ge=32, le=128)  # pixels a side
    most: int = Field(4, ge=1, le=16)  # garments in a scene; at least one
    smallest: int = Field(18, ge=8)  # pixels of the garment's image (28 as it is)
    largest: int = Field(32, ge=8)  # as smallest
    alpha: float = Field(1.0, gt=0)  # of the Dirichlet mix of a site's garments; large: all alike
    classes: Words | None = None  # some of the ten
    # number of classes that each site labels, in rotation; None: all. The others are shown too
    labels_each: int | None = Field(None, ge=1)
    seed: int = 0  # of all that is drawn

    facts: ClassVar[dict[str, str]] = {
        "title": "Composed scenes: Fashion-MNIST garments on photographed textures",
        "licence": "MIT (garments), CC0 (textures)",
        "credit": "Copyright 2017 Zalando SE; Xiao, Rasul, Vollgraf, arXiv:1708.07747; textures "
        "from CC0Textures and linolafett, as shipped with scikit-image",
    }

    def check(self) -> list[Problem]:
        """Problems with sizes and classes."""
        problems = super().check()
        if not self.smallest <= self.largest <= self.size:
            cause = f"garments of {self.smallest} to {self.largest} pixels, scenes of {self.size}"
            problems.append(Problem("data.largest", cause, "smallest <= largest <= size"))
        for name in self.classes or ():
            if name not in FashionMnist12k.names:
                cure = nearest(name, FashionMnist12k.names)
                problems.append(Problem("data.classes", f"there is no garment '{name}'", cure))
        if self.labels_each is not None and self.labels_each > len(self._names):
            cause = f"a site cannot label {self.labels_each} of {len(self._names)} classes"
            problems.append(Problem("data.labels_each", cause, "lower it"))
        return problems

    @property
    def _names(self) -> tuple[str, ...]:
        return self.classes or FashionMnist12k.names

    def open(self) -> Dataset:
        """Compose all scenes; equal settings give equal scenes."""
        preprocess = self.preprocess(1, self.size, self.size, usual=(0.45, 0.25))
        materials, made = self._materials(), []
        for part, (material, count) in enumerate(
            zip(materials, (self.train, self.test), strict=True)
        ):
            scenes = [
                (site, self._scene(material, site, part, number))
                for site in range(self.sites)
                for number in range(count)
            ]
            hidden = [() if part else self.unlabelled(site) for site, _ in scenes]
            rows = [
                [row for row in rows if int(row[0]) not in missing]
                for (_, (_, rows)), missing in zip(scenes, hidden, strict=True)
            ]
            pixels = np.stack([pixels for _, (pixels, _) in scenes])[:, None]
            made.append((pixels, pack(rows, hidden), [site for site, _ in scenes]))
        parts = []
        for (pixels, _, owners), targets, name in zip(
            made, joined([one[1] for one in made]), ("train", "test"), strict=True
        ):
            images = ArrayImages(torch.from_numpy(pixels), f"composed/{name}")
            ids = [site_name(site, self.sites) for site in owners]
            parts.append(Part(images, majority(targets).numpy(), ids, targets))
        return Dataset(parts[0], parts[1], self._names, preprocess, facts=dict(self.facts))

    def unlabelled(self, site: int) -> tuple[int, ...]:
        """The classes that a site shows but does not label."""
        if self.labels_each is None:
            return ()
        count = len(self._names)
        known = {(site * self.labels_each + turn) % count for turn in range(self.labels_each)}
        return tuple(label for label in range(count) if label not in known)

    def _materials(self) -> tuple[Material, Material]:
        garments = FashionMnist12k().open()
        path = files("fedsight.data").joinpath("samples", "textures.npz")
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                textures = [arrays[name] for name in ("brick", "grass", "gravel")]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"'{path}' cannot be read: {error}", "install FedSight again"
            ) from error
        numbers = [FashionMnist12k.names.index(name) for name in self._names]
        found = []
        for part, half in ((garments.train, slice(None, 128)), (garments.test, slice(128, None))):
            assert isinstance(part.images, ArrayImages)
            pixels = part.images.pixels.squeeze(1).numpy()
            by_class = tuple(pixels[part.labels == number] for number in numbers)
            found.append(Material(by_class, tuple(texture[half] for texture in textures)))
        return found[0], found[1]

    def _scene(
        self, material: Material, site: int, part: int, number: int
    ) -> tuple[Grey, list[Row]]:
        """One scene [size, size] and its boxes."""
        rng = draws(self.seed, "scene", part, "site", site, number)
        texture = material.textures[site % len(material.textures)]
        top, left = (rng.between(0, side - self.size) for side in texture.shape)
        scene = texture[top : top + self.size, left : left + self.size].copy()
        if rng.uniform() < 0.5:
            scene = np.ascontiguousarray(scene[:, ::-1])
        mix = None if part else self._mix(site)
        rows: list[Row] = []
        for _ in range(rng.between(1, self.most)):
            label = rng.below(len(self._names)) if mix is None else int(rng.choose(mix, 1)[0])
            choice = material.garments[label]
            garment = self._garment(choice[rng.below(len(choice))], rng)
            if row := _put(garment, label, scene, rows, rng):
                rows.append(row)
        return scene, rows

    def _mix(self, site: int) -> Any:
        return draws(self.seed, "mix", "site", site).dirichlet(self.alpha, len(self._names))

    def _garment(self, pixels: Grey, rng: Draws) -> Grey:
        """The garment at a random size, cut to its outline's box."""
        side = rng.between(self.smallest, self.largest)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
        values = np.asarray(image)
        if rng.uniform() < 0.5:
            values = values[:, ::-1]
        down, across = (np.flatnonzero((values >= INK).any(axis)) for axis in (1, 0))
        return values[down[0] : down[-1] + 1, across[0] : across[-1] + 1]


def _put(garment: Grey, label: int, scene: Grey, others: Sequence[Row], rng: Draws) -> Row | None:
    """Paste the garment where it covers others by no more than a tenth; None if no such place."""
    (height, width), (rows, columns) = garment.shape, scene.shape
    for top, left in _places(rows - height + 1, columns - width + 1, rng):
        box = (left, top, left + width, top + height)
        if all(_covered(box, other) <= _COVERED for other in others):
            patch = scene[top : top + height, left : left + width]
            patch[garment >= INK] = garment[garment >= INK]
            return (float(label), float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return None


def _places(rows: int, columns: int, rng: Draws) -> Iterator[tuple[int, int]]:
    for _ in range(TRIES):
        yield rng.below(rows), rng.below(columns)


def _covered(box: tuple[int, int, int, int], other: Row) -> float:
    """The share of the other box that `box` covers."""
    _, left, top, right, bottom = other
    across = min(box[2], right) - max(box[0], left)
    down = min(box[3], bottom) - max(box[1], top)
    return max(0.0, across) * max(0.0, down) / ((right - left) * (bottom - top))
