"""Aerial photographs of three field sites with every tree crown boxed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field

from fedsight.core.draws import Draws, draws
from fedsight.core.errors import DataError
from fedsight.data.base import ArrayImages, Dataset, Part, Preprocess, Side, Source, sources
from fedsight.data.detection.boxes import Row, joined, majority, pack
from fedsight.data.detection.objects import Judge, cut
from fedsight.data.detection.voc import read_voc
from fedsight.data.fetch.cache import fetched
from fedsight.data.images.decode import raster
from fedsight.data.images.fit import Box
from fedsight.data.images.pixels import read_pixels
from fedsight.data.reading import file_bytes

TILES = {  # by field site of the National Ecological Observatory Network: photograph, boxes
    "OSBS": (("OSBS_029.png", "OSBS_029.xml"),),
    "SOAP": (("SOAP_061.png", "SOAP_061.xml"),),
    "YELL": (
        ("2019_YELL_2_541000_4977000_image_crop.png", "2019_YELL_2_541000_4977000_image_crop.xml"),
        (
            "2019_YELL_2_528000_4978000_image_crop2.png",
            "2019_YELL_2_528000_4978000_image_crop2.xml",
        ),
    ),
}
CROWN_SHOWN = 0.5  # share of a crown's box that must be in a window for it to count there
FETCHED = "deepforest-trees"
KINDS = ("Tree", "Alive", "Dead")  # all of them crowns


@dataclass(frozen=True)
class Tile:
    """A photograph [h, w, 3] uint8 with its boxes."""

    name: str
    pixels: npt.NDArray[np.uint8]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Ground:
    """The part of a tile that windows are cut from: left, top, right, bottom."""

    tile: Tile
    box: tuple[int, int, int, int]


@sources.add(
    "trees", licence="MIT", images="photographs of 3 field sites, 951 boxes, 0.1 m a pixel"
)
class Trees(Source):
    """Tree crowns in aerial photographs of three field sites (OSBS, SOAP, YELL).

    Each tile is divided by a straight line: windows for testing come from one side of it, windows
    for training from the other, so no pixel is seen in both. A site's training windows are drawn
    at random places, more of them where there is more ground. Test windows do not overlap, and
    each field site has about as many.
    """

    sample: ClassVar[bool] = True

    window: Side = 160  # side of a window in pixels of the photograph
    size: Side = 96  # side of the network's input
    windows: int = Field(200, ge=1)  # for training, at most, of each field site
    cover: float = Field(12.0, gt=0)  # how often training windows cover a site's ground, at most
    # training windows are up to this factor larger or smaller, as if seen from another height
    zoom: float = Field(1.0, ge=1, le=4)
    test_windows: int = Field(4, ge=1)  # at most, of each field site
    test_side: Literal["left", "right", "top", "bottom"] = "right"  # of each tile
    test_share: float = Field(0.5, gt=0, lt=1)  # of each tile
    seed: int = 0  # of the places of the training windows

    facts: ClassVar[dict[str, str]] = {
        "title": "Tree crowns of three NEON field sites, windows of aerial photographs",
        "licence": "MIT",
        "credit": "DeepForest 2.1.0, Weinstein et al. 2020, doi:10.1111/2041-210X.13472; "
        "photographs by the National Ecological Observatory Network",
    }

    def needs(self) -> tuple[str, ...]:
        """The photographs and their boxes."""
        return (FETCHED,)

    def open(self) -> Dataset:
        """Cut the windows; DataError names a file that is missing, broken or too small."""
        preprocess = self.preprocess(3, self.size, self.size)
        folder = fetched(FETCHED)
        parts: list[list[tuple[str, npt.NDArray[np.uint8], list[Row]]]] = [[], []]
        for site, files in TILES.items():
            tiles = [_tile(folder / photo, folder / boxes) for photo, boxes in files]
            train, test = zip(*(self._divided(tile) for tile in tiles), strict=True)
            rng = draws(self.seed, "windows", site)
            for ground, (left, top), side in self._anywhere(train, rng):
                parts[0].append((site, *self._window(ground.tile, left, top, side)))
            for ground, (left, top) in self._side_by_side(test):
                parts[1].append((site, *self._window(ground.tile, left, top, self.window)))
        targets = joined([pack([w[2] for w in part], [()] * len(part)) for part in parts])
        train_part, test_part = (
            self._part(part, boxes, name)
            for part, boxes, name in zip(parts, targets, ("train", "test"), strict=True)
        )
        return Dataset(train_part, test_part, ("tree",), preprocess, facts=dict(self.facts))

    def _part(self, windows: list[Any], targets: torch.Tensor, name: str) -> Part:
        pixels = torch.from_numpy(np.stack([pixels for _, pixels, _ in windows]))
        images = ArrayImages(pixels, f"trees/{name}")
        sites = [site for site, _, _ in windows]
        return Part(images, majority(targets).numpy(), sites, targets)

    def _divided(self, tile: Tile) -> tuple[Ground, Ground]:
        """The grounds for training and for testing."""
        height, width = tile.pixels.shape[:2]
        along = width if self.test_side in ("left", "right") else height
        line = round(along * self.test_share)
        if self.test_side in ("right", "bottom"):
            line = along - line
        first, second = (0, 0, width, height), (0, 0, width, height)
        if self.test_side in ("left", "right"):
            first, second = (0, 0, line, height), (line, 0, width, height)
        else:
            first, second = (0, 0, width, line), (0, line, width, height)
        for box in (first, second):
            if min(box[2] - box[0], box[3] - box[1]) < self.window:
                raise DataError(
                    f"no window of {self.window} pixels fits into {box[2] - box[0]} x "
                    f"{box[3] - box[1]} pixels of '{tile.name}'",
                    "lower data.window, or choose another data.test_share",
                )
        if self.test_side in ("left", "top"):
            first, second = second, first
        return Ground(tile, first), Ground(tile, second)

    def _anywhere(self, grounds: Sequence[Ground], rng: Draws) -> Any:
        """Random places and sides of windows, tiles drawn by their area."""
        areas = np.array([(g.box[2] - g.box[0]) * (g.box[3] - g.box[1]) for g in grounds])
        most = round(self.cover * float(areas.sum()) / self.window**2)
        count = max(1, min(self.windows, most))
        for number in rng.choose(areas, count):
            left, top, right, bottom = grounds[number].box
            times = self.zoom ** (2 * rng.uniform() - 1) if self.zoom > 1 else 1.0
            side = min(round(self.window * times), right - left, bottom - top)
            place = (
                rng.between(left, right - side),
                rng.between(top, bottom - side),
            )
            yield grounds[number], place, side

    def _side_by_side(self, grounds: Sequence[Ground]) -> Any:
        """Up to `test_windows` windows that do not overlap, evenly taken from all that fit."""
        places = []
        for ground in grounds:
            left, top, right, bottom = ground.box
            across, down = (right - left) // self.window, (bottom - top) // self.window
            for row in range(down):
                for column in range(across):
                    # Leave the spare pixels between the windows, not at one edge.
                    spare = (right - left - across * self.window, bottom - top - down * self.window)
                    x = left + column * self.window + spare[0] * (column + 1) // (across + 1)
                    y = top + row * self.window + spare[1] * (row + 1) // (down + 1)
                    places.append((ground, (x, y)))
        count = min(self.test_windows, len(places))
        return [places[int((number + 0.5) * len(places) / count)] for number in range(count)]

    def _window(self, tile: Tile, left: int, top: int, side: int) -> tuple[Any, list[Row]]:
        """The network's input [3, size, size] uint8 and its boxes; `side` in the photograph."""
        pixels = tile.pixels[top : top + side, left : left + side]
        goal = Preprocess(3, self.size, self.size)
        rows = []
        for box in tile.boxes:
            moved = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
            if row := cut(0.0, moved, side, side, CROWN_SHOWN):
                times = self.size / side
                _, *corners = row
                a, b, c, d = (value * times for value in corners)
                rows.append((0.0, a, b, c, d))
        return raster(Image.fromarray(np.ascontiguousarray(pixels)), goal), rows


def _tile(photo: Path, boxes: Path) -> Tile:
    _, found = read_voc(boxes)
    data = file_bytes(photo, f"fetch it again: fedsight data get {FETCHED}")
    pixels = read_pixels(data, str(photo))
    height, width = pixels.shape[:2]
    rows = Judge(KINDS).rows(found.objects, (width, height))
    return Tile(photo.name, pixels, tuple(row[1:] for row in rows))
