"""Outlines of COCO and YOLO as pixels: equal to what pycocotools makes of the same files."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Part
from fedsight.data.detection.outlines import runs_of

# pycocotools' own decoding, with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 12, 20
TRIANGLE = [2.0, 1.0, 15.5, 3.2, 6.0, 10.9]
HOLED = [[1.0, 1.0, 6.0, 1.0, 6.0, 6.0, 1.0, 6.0], [10.2, 2.0, 18.0, 2.0, 18.0, 9.7, 10.2, 9.7]]
SMALL = [3.0, 3.0, 5.0, 3.0, 5.0, 5.0, 3.0, 5.0]

opened = partial(opened_sources.opened, "masks", channels=1, size=[HEIGHT, WIDTH])
refused = partial(opened_sources.refused, "masks", channels=1, size=[HEIGHT, WIDTH])


def disc() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((x - 12) ** 2 + (y - 6) ** 2 < 16).astype(np.uint8)


def runs(compressed: bool) -> dict[str, Any]:
    """A disc as COCO writes crowds, or compressed."""
    found = coco_mask.encode(np.asfortranarray(disc()))
    if compressed:
        return {"size": found["size"], "counts": found["counts"].decode()}
    flat = disc().ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts if flat[0] == 0 else [0, *counts]}


def coco(root: Path, shapes: list[tuple[int, Any]], **more: Any) -> Path:
    """Six images, of which number i has the shape i; the last one is for testing."""
    images, annotations = [], []
    for number in range(6):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        part = "test" if number == 5 else "train"
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
            | {"split": part}
        )
        category, shape = shapes[number % len(shapes)]
        entry = {"image_id": number, "category_id": category, "iscrowd": 0, **more}
        annotations.append({"id": number + 1, "segmentation": shape, **entry})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    file = root / "coco.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return file


def truths(found: Dataset) -> dict[int, np.ndarray]:
    """The target of each image by its number."""
    table = {}
    every: list[Part] = [found.train, found.test]
    for part in every:
        assert part.targets is not None
        for index in range(len(part)):
            table[int(Path(part.images.name(index)).stem)] = part.targets[index].numpy()
    return table


SHAPES = [(3, [TRIANGLE]), (7, HOLED), (3, runs(False)), (7, runs(True)), (3, TRIANGLE)]


def test_polygons_and_runs_are_the_pixels_of_pycocotools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = coco(tmp_path, SHAPES)
    found = opened(file)
    assert found.classes == ("background", "cat", "dog")
    table = json.loads(file.read_text())
    for entry in table["annotations"]:  # which pycocotools expects as lists of polygons
        if entry["segmentation"] == TRIANGLE:
            entry["segmentation"] = [TRIANGLE]
    file.write_text(json.dumps(table))
    theirs = COCO(str(file))
    capsys.readouterr()
    for number, mask in truths(found).items():
        (annotation,) = theirs.loadAnns(theirs.getAnnIds(imgIds=[number]))
        expected = theirs.annToMask(annotation) * {3: 1, 7: 2}[annotation["category_id"]]
        assert expected.any()
        assert np.array_equal(mask, expected)


def test_a_folder_of_coco_files_has_its_parts(tmp_path: Path) -> None:
    coco(tmp_path, SHAPES)
    assert len(opened(tmp_path).test) == 1


def test_the_smaller_of_two_objects_counts_where_they_overlap(tmp_path: Path) -> None:
    for order in (1, -1):
        root = tmp_path / f"order{order}"
        root.mkdir()
        file = coco(root, [(3, [TRIANGLE])])
        table = json.loads(file.read_text())
        more = [
            {**one, "id": 100 + one["id"], "category_id": 7, "segmentation": [SMALL]}
            for one in table["annotations"]
        ]
        table["annotations"] = (table["annotations"] + more)[::order]
        file.write_text(json.dumps(table))
        found = opened(file)
        small = np.zeros((HEIGHT, WIDTH), bool)
        small[3:5, 3:5] = True
        for mask in truths(found).values():
            assert np.array_equal(mask == 2, small)
        assert any("pixels lie in objects of two classes" in note for note in found.notes)


def test_what_outlines_lack_is_said(tmp_path: Path) -> None:
    file = coco(tmp_path, SHAPES)
    table = json.loads(file.read_text())
    table["annotations"] = table["annotations"][1:]
    file.write_text(json.dumps(table))
    found = opened(file)
    assert "1 images have no object: all background" in found.notes
    assert not truths(found)[0].any()
    crowded = opened(coco(tmp_path, [(3, runs(True)), (7, HOLED)], iscrowd=1))
    assert "6 objects are crowds: all of their pixels count as their class" in crowded.notes


@pytest.mark.parametrize(
    ("change", "options", "cause", "cure"),
    [
        ({"segmentation": None, "bbox": [1, 1, 3, 3]}, {}, "without an outline", "detect"),
        ({"segmentation": [[1, 1, 2, 2]]}, {}, "three points", "correct"),
        ({"segmentation": [[-9, 1, 5, 1, 5, 5]]}, {}, "9.0 pixels outside", "data.outside"),
        ({"segmentation": [[-9e8, 1, 5, 1, 5, 5]]}, {"outside": "clip"}, "outside", "correct"),
        ({"segmentation": {"size": [12, 20], "counts": [100, 20]}}, {}, "do not fill", "correct"),
        ({"segmentation": {"size": [12, 20], "counts": "aab"}}, {}, "mask of runs", "correct"),
        ({"segmentation": {"size": [20, 12], "counts": [240]}}, {}, "[20, 12]", "correct"),
        ({"category_id": 9}, {}, "unknown class '9'", "data.classes"),
        ({}, {"classes": ["cat", "dog"]}, "'cat' is the first of data.classes", "background"),
        ({}, {"classes": ["background", "cat"]}, "unknown class 'dog'", "data.classes"),
        (
            {},
            {"values": {"background": 0, "c": 1}, "classes": ["background", "c"]},
            "values",
            "out",
        ),
    ],
)
def test_wrong_outlines_are_named(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], cause: str, cure: str
) -> None:
    file = coco(tmp_path, SHAPES)
    table = json.loads(file.read_text())
    table["annotations"][0] |= change
    file.write_text(json.dumps(table))
    error = refused(file, **options)
    assert cause in error.cause
    assert cure in error.cure
    assert "coco.json" in error.cause


def test_an_outline_beyond_the_image_is_clipped_if_that_is_allowed(tmp_path: Path) -> None:
    beyond = [-9.0, 2.0, 5.0, 2.0, 5.0, 6.0, -9.0, 6.0]
    found = opened(coco(tmp_path, [(3, [beyond]), (7, HOLED)]), outside="clip")
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[2:6, :5] = True
    assert np.array_equal(truths(found)[0] == 1, expected)


def yolo(root: Path, line: str) -> Path:
    for number in range(6):
        part = "val" if number == 5 else "train"
        rng = np.random.default_rng(number)
        image = root / f"images/{part}/{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)).save(image)
        label = root / f"labels/{part}/{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(line.format(number % 2) + "\n")
    (root / "data.yaml").write_text("names: [cat, dog]\n")
    return root


@pytest.mark.parametrize("given_as", [".", "data.yaml"])
def test_segments_of_yolo_are_the_pixels_of_pycocotools(tmp_path: Path, given_as: str) -> None:
    sides = [(WIDTH, HEIGHT)[place % 2] for place in range(len(TRIANGLE))]
    written = [f"{value / side:.6f}" for value, side in zip(TRIANGLE, sides, strict=True)]
    found = opened(yolo(tmp_path, "{} " + " ".join(written)) / given_as)
    polygon = [float(word) * side for word, side in zip(written, sides, strict=True)]
    (theirs,) = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)
    expected = coco_mask.decode(theirs)
    assert found.classes == ("background", "cat", "dog")
    assert len(found.test) == 1
    for number, mask in truths(found).items():
        assert np.array_equal(mask, expected * (1 + number % 2))


def test_boxes_of_yolo_are_no_outlines(tmp_path: Path) -> None:
    error = refused(yolo(tmp_path, "{} 0.5 0.5 0.4 0.4"))
    assert "0.txt, line 1: it is a box without an outline" in error.cause
    assert "task.name = 'detect'" in error.cure


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_compressed_runs_are_read_as_pycocotools_reads_them(h: int, w: int, seed: int) -> None:
    pixels = (np.random.default_rng(seed).random((h, w)) < 0.5).astype(np.uint8)
    theirs = coco_mask.encode(np.asfortranarray(pixels))
    text = {"size": [h, w], "counts": theirs["counts"].decode()}
    ours = runs_of(text, (h, w), "here")
    assert np.array_equal(coco_mask.decode(ours), pixels)


@given(st.text(alphabet=[chr(code) for code in range(40, 120)], max_size=30))
def test_no_text_makes_runs_beyond_the_mask(text: str) -> None:
    segmentation = {"size": [5, 7], "counts": text}
    sound = False
    with contextlib.suppress(DataError):
        found = runs_of(segmentation, (5, 7), "here")
        sound = sum(coco_mask.decode(found).shape) == 12
    if not sound:
        with pytest.raises(DataError, match="here: 'segmentation' is not a mask of runs"):
            runs_of(segmentation, (5, 7), "here")
