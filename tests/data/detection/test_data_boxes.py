"""Boxes from COCO, VOC and YOLO files: alike from all three, and every fault is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Preprocess, sources
from fedsight.data.detection.boxes import crowded, labelled, present, regions
from fedsight.data.detection.objects import placed, returned

# left, top, right, bottom in images of 40 x 20
TRUTH = {
    "a/train1": [("cat", 4, 2, 14, 12), ("dog", 20, 0, 40, 20)],
    "a/train2": [("dog", 1, 1, 11, 6)],
    "b/train3": [("cat", 0, 0, 40, 20)],
    "b/train4": [],
}
VOC = "<annotation><filename>{}.png</filename><size><width>40</width><height>20</height></size>{}"
OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 20), 90).save(path)


def coco(root: Path, **more: Any) -> Path:
    images, annotations = [], []
    for number, (name, rows) in enumerate(TRUTH.items()):
        picture(root / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": 40, "height": 20})
        for label, left, top, right, bottom in rows:
            box = [left, top, right - left, bottom - top]
            category = ["cat", "dog"].index(label)
            annotations.append({"image_id": number, "category_id": category, "bbox": box})
    table = {
        "images": images,
        "annotations": [*annotations, *more.get("annotations", [])],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    path = root / "boxes.json"
    path.write_text(json.dumps(table))
    return path


def voc(root: Path) -> Path:
    for name, rows in TRUTH.items():
        picture(root / f"{name}.png")
        found = [OBJECT.format(label, x + 1, y + 1, r, b) for label, x, y, r, b in rows]
        text = VOC.format(Path(name).name, "".join(found)) + "</annotation>"
        (root / f"{name}.xml").write_text(text)
    return root


def yolo(root: Path) -> Path:
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    for name, rows in TRUTH.items():
        picture(root / "images" / f"{name}.png")
        lines = [
            f"{['cat', 'dog'].index(label)} {(x + r) / 80} {(y + b) / 40} {(r - x) / 40} "
            f"{(b - y) / 20}"
            for label, x, y, r, b in rows
        ]
        file = root / "labels" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        if lines:
            file.write_text("\n".join(lines) + "\n")
    return root


WRITERS = {"coco": coco, "voc": voc, "yolo": yolo}


def opened(path: Path, **options: Any) -> Dataset:
    given = {"size": [20, 40], "channels": 1, "sites_in_path": True, "missing": "allow"}
    return sources.get("boxes")(path=path, **{**given, **options}).open()


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    assert caught.value.cure
    return caught.value.cause


def everything(found: Dataset) -> dict[str, list[tuple[Any, ...]]]:
    """Boxes by image name."""
    table = {}
    for part in (found.train, found.test):
        assert part.targets is not None
        for index in range(len(part)):
            rows = part.targets[index][part.targets[index, :, 0] >= 0].tolist()
            table[Path(part.images.name(index)).stem] = [
                (found.classes[int(row[0])], *(round(value, 3) for value in row[1:]))
                for row in rows
            ]
    return table


@pytest.mark.parametrize("kind", WRITERS)
def test_all_formats_tell_the_same(tmp_path: Path, kind: str) -> None:
    found = opened(WRITERS[kind](tmp_path))
    assert found.classes == ("cat", "dog")
    assert everything(found) == {Path(name).name: rows for name, rows in TRUTH.items()}
    assert sorted({*(found.train.sites or ()), *(found.test.sites or ())}) == ["a", "b"]
    assert len(found.train) + len(found.test) == 4
    assert found.skipped == ()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_boxes_go_where_the_pixels_go_and_come_back(fit: Any) -> None:
    goal = Preprocess(1, 32, 32, fit)
    row = placed((1.0, 15.0, 5.0, 25.0, 15.0), (40, 20), goal)
    assert row is not None
    back = returned((row[1], row[2], row[3], row[4]), (40, 20), goal)
    assert back == pytest.approx((15, 5, 25, 15))
    if fit == "crop":
        assert placed((1.0, 0.0, 0.0, 11.0, 20.0), (40, 20), goal) is None


@pytest.mark.parametrize(
    ("kind", "bad", "setting", "said"),
    [
        ("coco", [30, 10, 20, 5], "outside", r"annotations\[4\].*outside its image of 40 x 20"),
        ("coco", [3, 3, 0, 5], "no_area", r"annotations\[4\].*no area"),
        ("voc", ("cat", 30, 10, 50, 15), "outside", r"train4.xml, object 1.*outside"),
        ("voc", ("cat", 9, 10, 8, 15), "no_area", r"train4.xml, object 1.*no area"),
        ("yolo", "0 0.9 0.5 0.5 0.5", "outside", r"train4.txt, line 1.*outside"),
        ("yolo", "0 0.9 0.5 0 0.5", "no_area", r"train4.txt, line 1.*no area"),
        ("yolo", "7 0.5 0.5 0.5 0.5", "unknown", r"train4.txt, line 1: unknown class '#7'"),
    ],
)
def test_a_bad_box_is_named_and_refused_or_skipped(
    tmp_path: Path, kind: str, bad: Any, setting: str, said: str
) -> None:
    if kind == "coco":
        path = coco(tmp_path, annotations=[{"image_id": 3, "category_id": 0, "bbox": bad}])
    elif kind == "voc":
        path = voc(tmp_path)
        text = VOC.format("train4", OBJECT.format(*bad)) + "</annotation>"
        (tmp_path / "b" / "train4.xml").write_text(text)
    else:
        path = yolo(tmp_path)
        (tmp_path / "labels" / "b" / "train4.txt").write_text(bad)
    cause = refused(path)
    assert re.search(said, cause), cause
    found = opened(path, **{setting: "skip"})
    assert everything(found)["train4"] == []
    assert found.skipped == (cause,)
    if setting == "outside":
        assert len(everything(opened(path, outside="clip"))["train4"]) == 1


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    assert "unknown class 'dog'" in refused(voc(tmp_path), classes=["cat"])
    path = coco(tmp_path, annotations=[{"image_id": 3, "category_id": 9, "bbox": [1, 1, 5, 5]}])
    assert "annotations[4]: unknown class '9'" in refused(path)
    assert len(opened(path, unknown="skip").skipped) == 1


def test_what_a_site_does_not_label_is_said_in_the_targets(tmp_path: Path) -> None:
    found = opened(voc(tmp_path), labelled={"a": ["cat"]}, classes=["cat", "dog"])
    for part in (found.train, found.test):
        assert part.targets is not None
        known = labelled(part.targets, 2)
        for index, site in enumerate(part.sites or ()):
            assert known[index].tolist() == [True, site == "b"]
    assert "which is not a site" in refused(tmp_path, labelled={"zoo": ["cat"]})
    assert "unknown class 'cow'" in refused(tmp_path, labelled=["cow"])
    source = sources.get("boxes")(path=tmp_path, labelled={"a": ["cat"]})
    assert source.table()["labelled"] == {"a": ["cat"]}
    assert hash(source)


def test_a_crowd_is_a_region_of_its_class_that_is_not_counted(tmp_path: Path) -> None:
    crowd = {"image_id": 3, "category_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 1}
    found = opened(coco(tmp_path, annotations=[crowd]))
    assert everything(found)["train4"] == []
    held = {}
    for part in (found.train, found.test):
        assert part.targets is not None
        shown, labels, crowds = regions(part.targets)
        for index in range(len(part)):
            assert labelled(part.targets, 2)[index].tolist() == [True, True]
            rows = part.targets[index][shown[index]]
            own = crowded(part.targets, 2)[index].tolist()
            name = Path(part.images.name(index)).stem
            held[name] = (rows[:, 1:].tolist(), labels[index][crowds[index]].tolist(), own)
    assert held["train4"] == ([[0, 0, 20, 20]], [1], [False, True])
    assert held["train1"] == ([], [], [False, False])
    assert any("1 boxes are crowds" in note for note in found.notes)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a/train1.xml", "<annotation>", "is not XML"),
        ("a/train1.xml", VOC.format("nowhere", "") + "</annotation>", "pixels|no image"),
        (
            "a/train1.xml",
            VOC.format("train1", OBJECT.format("cat", "x", 1, 2, 2)) + "</annotation>",
            "object 1: xmin is 'x'",
        ),
        (
            "a/train1.xml",
            VOC.format("train1", "").replace("40", "41") + "</annotation>",
            "40 x 20 pixels, not 41 x 20",
        ),
    ],
)
def test_a_broken_voc_file_is_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    root = voc(tmp_path)
    (root / file).write_text(text)
    if "nowhere" in text:
        (root / "a" / "train1.png").unlink()
    cause = refused(root)
    assert file in cause
    assert re.search(said, cause), cause


@pytest.mark.parametrize(
    "line", ["cat 0.5 0.5 0.1 0.1", "0 0.5 0.5", "0 nan 0.5 0.1 0.1", "-1 0 0 1 1"]
)
def test_a_broken_yolo_line_is_named(tmp_path: Path, line: str) -> None:
    root = yolo(tmp_path)
    (root / "labels/a/train1.txt").write_text(f"\n{line}\n")
    assert "train1.txt, line 2" in refused(root)


def test_train_and_test_folders_are_the_parts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        yolo(tmp_path / part)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = opened(tmp_path)
    assert (len(found.train), len(found.test)) == (4, 4)
    assert set(found.train.sites or ()) == {"a", "b"}
    assert found.train.targets is not None
    assert found.train.targets.dtype == torch.float32
    assert present(found.train.targets).sum() == 4


def test_a_folder_of_unknown_name_beside_known_ones_is_refused(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        yolo(tmp_path / part)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert (len(opened(tmp_path).train), len(opened(tmp_path).test)) == (4, 4)
    (tmp_path / "valid").rename(tmp_path / "wallet")
    assert "wallet" in refused(tmp_path, sites_in_path=False)


def test_lines_are_found_where_a_folder_above_is_called_images(tmp_path: Path) -> None:
    expected = everything(opened(yolo(tmp_path / "set")))
    assert everything(opened(yolo(tmp_path / "images" / "set"))) == expected
    root = tmp_path / "images" / "beside"
    shutil.copytree(tmp_path / "set" / "images", root)
    shutil.copytree(tmp_path / "set" / "labels", root, dirs_exist_ok=True)
    shutil.copy(tmp_path / "set" / "classes.txt", root)
    assert everything(opened(root)) == expected


@pytest.mark.parametrize("kind", WRITERS)
def test_an_unreadable_image_is_refused_or_left_out(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path)
    broken = next(tmp_path.rglob("train2.png"))
    broken.write_bytes(b"no image")
    assert "train2.png" in refused(path)
    found = opened(path, corrupt="skip", test_fraction=0.5)
    assert found.skipped == (str(broken),)
    assert sorted(everything(found)) == ["train1", "train3", "train4"]


def test_a_box_that_lies_in_the_slack_beyond_the_edge_is_not_lost_in_silence(
    tmp_path: Path,
) -> None:
    outside = {"image_id": 3, "category_id": 0, "bbox": [40, 5, 0.02, 10]}  # rounding allows 0.04
    path = coco(tmp_path, annotations=[outside])
    assert "annotations[4]: box (40, 5, 40.02, 15)" in refused(path)
    for policy in ("skip", "clip"):
        assert len(opened(path, outside=policy).skipped) == 1


def test_an_image_counts_for_each_class_that_it_shows(tmp_path: Path) -> None:
    found = opened(coco(tmp_path))
    counts = found.train.counts(2) + found.test.counts(2)
    assert counts.tolist() == [2, 2]  # one shows both, one nothing
    first = found.train.counts(2, np.array([0]))
    assert sum(first) == len(
        {row[0] for row in everything(found)[Path(found.train.images.name(0)).stem]}
    )


def test_a_site_without_training_images_is_refused(tmp_path: Path) -> None:
    """As by every other source; the split 'natural' would lose the site without a word."""
    voc(tmp_path)
    for site, part in (("a", "train"), ("b", "test")):
        (tmp_path / part).mkdir()
        shutil.move(tmp_path / site, tmp_path / part / site)
    assert "site 'b' has no training images" in refused(tmp_path)
