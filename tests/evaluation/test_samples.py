"""The report's test images come from all sites, by confusion, at the resolution of their files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from own_folders import CLASSES, picture
from PIL import Image

import fedsight
from fedsight.coordinator.store import RunStore
from fedsight.data.base import Preprocess
from fedsight.data.images.disk import DiskImages, NamedArray
from fedsight.evaluation.pictures import LONGEST, beside, plain_areas, plain_mark
from fedsight.evaluation.pictures import picture as picture_of
from fedsight.program.site_data import SiteData
from fedsight.tasks.presentation import Mark


@pytest.fixture(scope="module")
def run_of_three_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three sites with test images of their own, whose size differs by site."""
    root = tmp_path_factory.mktemp("own")
    for place, site in enumerate(("bern", "lyon", "oslo")):
        for part, count in (("train", 6), ("test", 5)):
            for kind, name in enumerate(CLASSES):
                for number in range(count):
                    seed = 1000 * place + 100 * (part == "test") + 10 * kind + number
                    path = root / part / site / name / f"{seed}.png"
                    picture(path, kind, 40 + 10 * place, seed)
    text = f"""
name = "own"
[data]
name = "folder"
path = "{root}"
sites_in_path = true
size = [16, 16]
[split]
name = "natural"
[model]
name = "small_cnn"
width = 4
blocks = 2
[rounds]
rounds = 1
"""
    config = root / "own.toml"
    config.write_text(text)
    fedsight.run(str(config), out=str(root / "run"))
    return root / "run"


def test_mistakes_come_from_all_sites_with_name_site_and_original_size(run_of_three_sites) -> None:
    found = RunStore(run_of_three_sites).read_json("evaluation.json")
    samples = found["samples"]
    wrong = [one for one in samples if not one["right"]]
    assert {one["site"] for one in wrong} == {"bern", "lyon", "oslo"}
    sides = {"bern": 40, "lyon": 50, "oslo": 60}
    for one in samples:
        assert f"/test/{one['site']}/{one['truth']}/" in one["name"]
        shown = Image.open(io.BytesIO(base64.b64decode(one["image"])))
        assert shown.size == (one["width"], one["height"]) == (sides[one["site"]],) * 2
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(one["name"])))
        assert one["full"] is None
    matrix, classes = found["confusion"], found["classes"]
    counts = [matrix[classes.index(o["truth"])][classes.index(o["predicted"])] for o in wrong]
    assert counts == sorted(counts, reverse=True)  # the largest confusions first
    assert sum(map(sum, matrix)) == 45


def shown_of(path: Path, preprocess: Preprocess) -> Any:
    """The picture of one file, as a site sees it that does not shift it."""
    images = DiskImages([path], preprocess)
    kept = NamedArray(torch.zeros(1, 3, preprocess.height, preprocess.width), images)
    part = federations.federation().dataset.test
    one = torch.tensor([0])
    data = SiteData(
        type(part)(kept, np.zeros(1, np.int64)),
        one,
        one - 1,
        lambda pixels, origin, indices: pixels,
    )
    return picture_of(data, 0)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_boxes_lie_where_they_are_in_the_file(tmp_path: Path, fit: Any) -> None:
    Image.new("RGB", (300, 200), "white").save(tmp_path / "a.png")
    preprocess = Preprocess(3, 64, 64, fit, (0.0,) * 3, (1.0,) * 3)
    shown = shown_of(tmp_path / "a.png", preprocess)
    assert shown.image.size == (300, 200)
    box = (100.0, 60.0, 180.0, 140.0)
    inside = shown.placement.forward(box)
    assert plain_mark(Mark(inside, "a", "missed"), shown) == {
        "box": pytest.approx(box, abs=1e-3), "label": "a", "kind": "missed", "score": None
    }  # fmt: skip
    left, top, right, bottom = plain_mark(Mark((-99, -99, 999, 999), "a"), shown)["box"]
    assert (left, top, right, bottom) == (0, 0, 300, 200)  # cut off at the edges


def test_a_large_file_becomes_a_smaller_copy_that_says_so(tmp_path: Path) -> None:
    Image.effect_noise((3000, 1500), 60).convert("RGB").save(tmp_path / "a.jpg")
    preprocess = Preprocess(3, 32, 32, "stretch", (0.0,) * 3, (1.0,) * 3)
    shown = shown_of(tmp_path / "a.jpg", preprocess)
    assert shown.image.size == (LONGEST, LONGEST // 2)
    assert shown.full == (3000, 1500)
    box = shown.shown((16.0, 16.0, 32.0, 32.0))
    assert box == pytest.approx((LONGEST / 2, LONGEST / 4, LONGEST, LONGEST / 2))


def test_sixteen_bits_and_grey_are_shown_as_the_network_is_given_them(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    preprocess = Preprocess(1, 8, 8, "stretch", (0.0,), (1.0,))
    shown = shown_of(tmp_path / "a.png", preprocess)
    assert shown.image.mode == "L"
    assert np.array_equal(np.asarray(shown.image), (values >> 8).astype(np.uint8))


def test_pairs_stand_side_by_side_at_one_height(tmp_path: Path) -> None:
    preprocess = Preprocess(3, 8, 8, "stretch", (0.0,) * 3, (1.0,) * 3)
    for name, size in (("a", (40, 20)), ("b", (30, 60))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    pair = beside([shown_of(tmp_path / f"{name}.png", preprocess) for name in "ab"])
    assert pair.image.size == (120 + 30, 60)


def test_areas_differ_by_more_than_colour_and_lie_on_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    shown = shown_of(tmp_path / "a.png", Preprocess(3, 24, 24, "pad", (0.0,) * 3, (1.0,) * 3))
    areas = torch.zeros(24, 24, dtype=torch.long)
    for kind in (1, 2, 3):
        areas[:, 6 * kind : 6 * kind + 6] = kind
    plain = plain_areas(areas, shown)
    tints = np.asarray(Image.open(io.BytesIO(base64.b64decode(plain["image"]))))
    opacities = [len(np.unique(tints[:, 6 * kind : 6 * kind + 6, 3])) for kind in (0, 1, 2, 3)]
    assert opacities == [1, 1, 2, 2]  # nothing, plain, hatched, hatched
    assert not tints[:, :6, 3].any()
    assert plain["box"] == pytest.approx([0, -25, 100, 75])  # the input is square, the file is not
