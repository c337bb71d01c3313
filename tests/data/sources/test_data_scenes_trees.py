"""Composed scenes and tree windows: exact boxes, the same each time, nothing seen in both parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.detection.boxes import labelled, present
from fedsight.data.fetch.cache import RECEIPT
from fedsight.data.fetch.packages import find
from fedsight.data.sources.scenes import Scenes
from fedsight.data.sources.trees import FETCHED, TILES, Trees

SCENES = Scenes(sites=3, train=6, test=4)


def test_scenes_are_the_same_each_time_and_others_by_seed() -> None:
    one, two = SCENES.open(), SCENES.open()
    other = SCENES.model_copy(update={"seed": 1}).open()
    every = torch.arange(18)
    assert torch.equal(one.train.images.read(every), two.train.images.read(every))
    assert one.train.targets is not None
    assert two.train.targets is not None
    assert torch.equal(one.train.targets, two.train.targets)
    assert not torch.equal(one.train.images.read(every), other.train.images.read(every))


def test_each_scene_has_garments_inside_it_and_its_site() -> None:
    found = SCENES.open()
    assert len(found.classes) == 10
    assert "omposed" in found.facts["title"]
    for part, count in ((found.train, 6), (found.test, 4)):
        assert part.sites is not None
        assert part.targets is not None
        assert [part.sites.count(f"site-{n:02d}") for n in range(3)] == [count] * 3
        boxes = part.targets[present(part.targets)]
        assert (present(part.targets).sum(1) >= 1).all()
        assert boxes[:, 1:].min() >= 0
        assert boxes[:, 1:].max() <= 64
        assert (boxes[:, 3:] > boxes[:, 1:3]).all()
        assert labelled(part.targets, 10).all()


def test_sites_that_label_some_classes_hide_the_others_in_training_only() -> None:
    classes = ("Trouser", "Sandal", "Bag")
    full = SCENES.model_copy(update={"classes": classes, "alpha": 100.0})
    some = full.model_copy(update={"labels_each": 1})
    whole, found = full.open(), some.open()
    assert torch.equal(
        whole.train.images.read(torch.arange(18)), found.train.images.read(torch.arange(18))
    )
    assert found.train.targets is not None
    assert found.test.targets is not None
    known = labelled(found.train.targets, 3)
    assert known.long().argmax(1).tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert (known.sum(1) == 1).all()
    assert labelled(found.test.targets, 3).all()
    rows = found.train.targets[present(found.train.targets)]
    assert 0 < len(rows) < int(present(whole.train.targets).sum())  # type: ignore[arg-type]


def test_scenes_that_cannot_be_are_refused() -> None:
    wrong = Scenes(smallest=30, largest=20, classes=("Bag", "Hat"), labels_each=3)
    keys = [problem.where for problem in wrong.check()]
    assert keys == ["data.largest", "data.classes", "data.labels_each"]
    assert SCENES.check() == []


@pytest.fixture
def forest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with small tiles in which each pixel says where it is."""
    monkeypatch.setenv("FEDSIGHT_CACHE", str(tmp_path))
    folder = tmp_path / FETCHED
    folder.mkdir()
    y, x = np.mgrid[0:80, 0:120].astype(np.uint8)
    for site, tiles in TILES.items():
        for photo, boxes in tiles:
            pixels = np.stack([x, y, np.full_like(x, len(site))], 2)
            Image.fromarray(pixels).save(folder / photo)
            objects = "".join(
                f"<object><name>Tree</name><bndbox><xmin>{left + 1}</xmin><ymin>11</ymin>"
                f"<xmax>{left + 8}</xmax><ymax>18</ymax></bndbox></object>"
                for left in range(0, 112, 10)
            )
            (folder / boxes).write_text(f"<annotation>{objects}</annotation>")
    receipt = {"sha256": find(FETCHED).sha256, "files": {}}
    (folder / RECEIPT).write_text(json.dumps(receipt))
    return folder


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_no_pixel_is_seen_in_training_and_in_testing(forest: Path, side: str) -> None:
    found = Trees(window=32, size=32, windows=10, test_side=side).open()
    axis = 0 if side in ("left", "right") else 1
    seen = []
    for part in (found.train, found.test):
        pixels = (part.images.read(torch.arange(len(part)))[:, axis] * 255).round()
        seen.append(set(pixels.unique().tolist()))
        assert set(part.sites or ()) == {"OSBS", "SOAP", "YELL"}
    assert not seen[0] & seen[1]
    first, second = (seen[1], seen[0]) if side in ("left", "top") else (seen[0], seen[1])
    assert max(first) < min(second)


def test_crowns_lie_where_they_were_in_the_photograph(forest: Path) -> None:
    found = Trees(window=32, size=64, windows=10).open()
    assert found.train.targets is not None
    images = found.train.images.read(torch.arange(len(found.train)))
    counted = 0
    for image, rows in zip(images, found.train.targets, strict=True):
        corner = (image[:2, 0, 0] * 255).round()  # of the photograph, up to the resizing
        for _, left, top, right, bottom in rows[rows[:, 0] >= 0].tolist():
            counted += 1
            if min(left, top) > 0 and max(right, bottom) < 64:
                assert (left / 2 + corner[0]) % 10 == 0
                assert (right - left, top / 2 + corner[1]) == (16, 10)
    assert counted


def test_zoom_changes_the_sides_of_training_windows_only_and_moves_the_crowns_along(
    forest: Path,
) -> None:
    found = Trees(window=32, size=32, windows=20, zoom=1.25, cover=40).open()
    plain = Trees(window=32, size=32, windows=20).open()
    assert found.train.targets is not None
    every = torch.arange(len(plain.test))
    assert torch.equal(found.test.images.read(every), plain.test.images.read(every))
    images = found.train.images.read(torch.arange(len(found.train)))
    widths = set()
    for image, rows in zip(images, found.train.targets, strict=True):
        across = float(image[0, 16, -1] - image[0, 16, 0]) * 255 / 31  # pixels seen by one pixel
        assert 1 / 1.3 < across < 1.3
        for _, left, top, right, bottom in rows[rows[:, 0] >= 0].tolist():
            if min(left, top) > 0 and max(right, bottom) < 32:
                assert (right - left) * across == pytest.approx(8, rel=0.1)
                widths.add(right - left)
    assert min(widths) < 8 < max(widths)


def test_a_window_too_large_for_a_tile_and_a_missing_file_are_named(forest: Path) -> None:
    with pytest.raises(DataError, match=r"no window of 90 pixels.*OSBS_029.png"):
        Trees(window=90).open()
    (forest / "SOAP_061.png").unlink()
    with pytest.raises(DataError, match=r"SOAP_061.png"):
        Trees(window=32).open()
