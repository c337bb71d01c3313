"""Folder, manifest and COCO sources: layouts, held-out parts, corrupt files, and their errors."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pytest
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import sources
from fedsight.data.detection.coco import read_coco
from fedsight.data.images.disk import DiskImages


def picture(path: Path, seed: int = 0, deep: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    top, dtype = (65536, np.uint16) if deep else (256, np.uint8)
    Image.fromarray(np.random.default_rng(seed).integers(0, top, (9, 7), dtype=dtype)).save(path)


def tree(root: Path, counts: dict[str, int], suffix: str = "png") -> Path:
    """`counts`: images by folder, e.g. {"site-a/cat": 3}."""
    for number, (folder, count) in enumerate(counts.items()):
        for index in range(count):
            picture(root / folder / f"{index:02d}.{suffix}", seed=100 * number + index)
    return root


opened = partial(opened_sources.opened, size=8, channels=1)
refused = partial(opened_sources.refused, size=8, channels=1)


def test_folder_holds_out_a_part_of_each_class(tmp_path: Path) -> None:
    found = opened("folder", path=tree(tmp_path, {"cat": 20, "dog": 10, "rare": 2}))
    assert found.classes == ("cat", "dog", "rare")
    assert Counter(found.test.labels.tolist()) == {0: 4, 1: 2, 2: 1}
    assert len(found.train) == 25
    assert found.train.sites is None
    names = {found.train.images.name(i) for i in range(len(found.train))}
    assert not names & {found.test.images.name(i) for i in range(len(found.test))}
    again = opened("folder", path=tmp_path)
    assert [again.test.images.name(i) for i in range(7)] == [
        found.test.images.name(i) for i in range(7)
    ]
    other = opened("folder", path=tmp_path, test_seed=1)
    assert {other.test.images.name(i) for i in range(7)} != {
        found.test.images.name(i) for i in range(7)
    }


@pytest.mark.parametrize("source", ["folder", "people"])
@pytest.mark.parametrize("place", ["loop", "cat/loop", "cat/loop.png"])
def test_what_cannot_be_looked_at_is_named(tmp_path: Path, source: str, place: str) -> None:
    """A link to itself: even an administrator cannot follow it, as others not a locked folder."""
    tree(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / place).symlink_to(tmp_path / place)
    error = refused(source, path=tmp_path)
    assert str((tmp_path / place).parent) in error.cause
    assert f"('{tmp_path / place}')" in error.cause
    assert "Too many levels of symbolic links" in error.cause


def test_a_folder_that_cannot_even_be_asked_for_is_named(tmp_path: Path) -> None:
    error = refused("folder", path=tmp_path / ("x" * 300))
    assert "x' cannot be read: File name too long" in error.cause


def test_folder_with_parts_and_sites(tmp_path: Path) -> None:
    tree(tmp_path, {"train/a/cat": 2, "train/b/dog": 3, "test/a/dog": 1})
    found = opened("folder", path=tmp_path, sites_in_path=True)
    assert found.train.sites == ["a", "a", "b", "b", "b"]
    assert found.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.test.sites == ["a"]


def test_held_out_images_come_from_every_site(tmp_path: Path) -> None:
    tree(tmp_path, {f"s{site}/{name}": 10 for site in range(4) for name in ("x", "y")})
    found = opened("folder", path=tmp_path, sites_in_path=True)
    pairs = Counter(zip(found.test.sites or (), found.test.labels.tolist(), strict=True))
    assert set(pairs.values()) == {2}
    assert len(pairs) == 8


def test_every_site_keeps_a_training_image(tmp_path: Path) -> None:
    tree(tmp_path, {f"s{site}/x": 1 + site % 3 for site in range(6)})
    for seed in range(5):
        found = opened(
            "folder", path=tmp_path, sites_in_path=True, test_fraction=0.5, test_seed=seed
        )
        assert set(found.train.sites or ()) == {f"s{site}" for site in range(6)}
        assert 3 <= len(found.test) <= 6


def test_streaming_equals_memory_bit_for_bit_whatever_the_depth(tmp_path: Path) -> None:
    tree(tmp_path, {"cat": 6, "dog": 5})
    picture(tmp_path / "dog" / "deep.png", deep=True)
    for size in (8, [9, 7]):
        for channels in (1, 3):
            kept = opened("folder", path=tmp_path, size=size, channels=channels, in_memory=True)
            streamed = opened(
                "folder", path=tmp_path, size=size, channels=channels, in_memory=False
            )
            for one, two in ((kept.train, streamed.train), (kept.test, streamed.test)):
                every = torch.arange(len(one))
                assert torch.equal(one.images.read(every), two.images.read(every))
                assert [one.images.name(i) for i in every] == [two.images.name(i) for i in every]


def test_disk_images_are_cheap_to_send() -> None:
    paths = [f"/data/class/{i:06d}.png" for i in range(10_000)]
    images = DiskImages(paths, sources.get("folder")(path="x").preprocess(1, 8, 8))
    packed = pickle.dumps(images)
    assert len(packed) < 40 * len(paths)
    assert pickle.loads(packed).name(1234) == paths[1234]


@pytest.mark.parametrize("in_memory", [True, False])
def test_corrupt_images(tmp_path: Path, in_memory: bool) -> None:
    tree(tmp_path, {"cat": 6, "dog": 6})
    bad = tmp_path / "dog" / "03.png"
    bad.write_bytes(bad.read_bytes()[:40])
    error = refused("folder", path=tmp_path, in_memory=in_memory)
    assert str(bad) in error.cause
    assert "skip" in error.cure
    found = opened("folder", path=tmp_path, in_memory=in_memory, corrupt="skip")
    assert found.skipped == (str(bad),)
    assert len(found.train) + len(found.test) == 11
    assert len(found.train.images) == len(found.train.labels)
    assert found.train.images.read(torch.arange(len(found.train))).shape[1:] == (1, 8, 8)


def test_unverified_streaming_meets_the_corrupt_image_later(tmp_path: Path) -> None:
    tree(tmp_path, {"cat": 6})
    for path in (tmp_path / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    found = opened("folder", path=tmp_path, in_memory=False, verify=False)
    with pytest.raises(DataError, match="cat"):
        found.train.images.read(torch.tensor([0]))


def test_a_class_of_corrupt_images_is_empty(tmp_path: Path) -> None:
    tree(tmp_path, {"cat": 4, "dog": 2})
    for path in (tmp_path / "dog").iterdir():
        path.write_text("broken")
    error = refused("folder", path=tmp_path, corrupt="skip")
    assert "class 'dog' has no training images" in error.cause
    assert "2 corrupt" in error.cause


def test_folder_errors_name_the_culprit(tmp_path: Path) -> None:
    assert "is not a folder" in refused("folder", path=tmp_path / "none").cause
    assert "has no images" in refused("folder", path=tmp_path).cause
    tree(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "notes.txt").write_text("no image, passed over")
    (tmp_path / "cat" / ".hidden.png").write_text("passed over")
    assert len(opened("folder", path=tmp_path).train) == 2
    (tmp_path / "empty").mkdir()
    assert "class 'empty' has no images" in refused("folder", path=tmp_path).cause
    (tmp_path / "empty").rmdir()
    error = refused("folder", path=tmp_path, classes=["cats", "dog"])
    assert "'cat' is not in data.classes" in error.cause
    assert "did you mean 'cats'" in error.cure
    error = refused("folder", path=tmp_path, classes=["cat", "dog", "emu"])
    assert "class 'emu' has no training images" in error.cause
    assert "twice" in refused("folder", path=tmp_path, classes=["cat", "cat"]).cause
    picture(tmp_path / "loose.png")
    assert "loose.png' is not in a class folder" in refused("folder", path=tmp_path).cause


def test_folder_level_errors(tmp_path: Path) -> None:
    tree(tmp_path / "a", {"site/cat": 2, "site/dog": 2, "other/cat": 2})
    error = refused("folder", path=tmp_path / "a")
    assert "sites_in_path = true" in error.cure
    (tmp_path / "a" / "idle").mkdir()
    error = refused("folder", path=tmp_path / "a", sites_in_path=True)
    assert "site 'idle' has no images" in error.cause
    tree(tmp_path / "b", {"train/cat": 2, "test/cat": 2, "vla/cat": 1})
    assert "'vla' beside 'test' and 'train'" in refused("folder", path=tmp_path / "b").cause
    tree(tmp_path / "c", {"only/cat": 1})
    error = refused("folder", path=tmp_path / "c", sites_in_path=True)
    assert "has no test images" in error.cause
    tree(tmp_path / "d", {"train/a/cat": 1, "test/a/cat": 1, "test/b/cat": 1})
    error = refused("folder", path=tmp_path / "d", sites_in_path=True)
    assert "site 'b' has no training images" in error.cause


def test_settings_are_checked_before_reading(tmp_path: Path) -> None:
    problems = sources.get("folder")(path=tmp_path / "none", std=[0.0]).check()
    assert [problem.where for problem in problems] == ["data.std", "data.path"]
    tree(tmp_path, {"cat": 2})
    error = refused("folder", path=tmp_path, mean=[0.5, 0.5])
    assert "data.mean" in error.cause
    with pytest.raises(ValueError, match="size"):
        sources.get("folder")(path=tmp_path, size=0)


def manifest(root: Path, text: str) -> Path:
    for number in range(8):
        picture(root / "images" / f"{number}.png", seed=number)
    path = root / "all.csv"
    path.write_text(text)
    return path


def test_manifest_with_sites_and_parts(tmp_path: Path) -> None:
    rows = ["path,label,site,split"]
    rows += [
        f"images/{n}.png,{'ab'[n % 2]},s{n % 3},{'test' if n > 5 else 'train'}" for n in range(8)
    ]
    found = opened("manifest", path=manifest(tmp_path, "\n".join(rows)))
    assert found.classes == ("a", "b")
    assert found.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.train.sites == ["s0", "s1", "s2", "s0", "s1", "s2"]
    assert len(found.test) == 2


def test_manifest_with_other_columns(tmp_path: Path) -> None:
    text = "file;kind\n" + "".join(f"images/{n}.png;x\n" for n in range(8))
    path = manifest(tmp_path, "\ufeff" + text)
    found = opened("manifest", path=path, path_column="file", label_column="kind", delimiter=";")
    assert len(found.train) == 6
    assert len(found.test) == 2


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "line 1: there is no column 'path'"),
        ("path,site\n", "line 1: there is no column 'label'"),
        ("path,label\n", "has no images"),
        ("path,label\nimages/0.png,a\nimages/99.png,a\n", "line 3: there is no image"),
        ("path,label\nimages/0.png,\n", "line 2: 'label' is empty"),
        ("path,label,site\nimages/0.png,a, \n", "line 2: 'site' is empty"),
        ("path,label\nimages/0.png\n", "line 2 has fewer values"),
        ("path,label\nimages/0.png,a,b\n", "line 2 has more values"),
        ("path,label,split\nimages/0.png,a,vla\n", "line 2: 'split' is 'vla'"),
        ('path,label\n"images/0.png"x,a\n', "line 2"),
        ("path,label,split\nimages/0.png,a,train\n", "no test images"),
        ("path,label,split\nimages/0.png,a,train\nimages/1.png,b,test\n", "class 'b' has no train"),
    ],
)
def test_manifest_errors_name_file_and_line(tmp_path: Path, text: str, cause: str) -> None:
    error = refused("manifest", path=manifest(tmp_path, text))
    assert cause in error.cause
    assert "all.csv" in error.cause


def test_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in refused("manifest", path=tmp_path / "none.csv").cause
    path = manifest(tmp_path, "path,label\n")
    path.write_bytes(b"path,label\n\xff\xfe,a\n")
    assert "not UTF-8" in refused("manifest", path=path).cause
    path = manifest(tmp_path, "path,label\nimages/0.png,a\n")
    assert "no column 'clinic'" in refused("manifest", path=path, site_column="clinic").cause
    error = refused("manifest", path=path, classes=["b"])
    assert "line 2: label 'a' is not in data.classes" in error.cause


@pytest.mark.parametrize(
    ("source", "named", "setting"),
    [
        ("manifest", {}, "data.label_column"),
        ("dicom", {}, "data.label_column"),
        ("masks", {"classes": ["ground", "cell"]}, "data.mask_column"),
    ],
)
def test_a_missing_column_is_cured_by_the_source_s_own_setting(
    tmp_path: Path, source: str, named: dict[str, Any], setting: str
) -> None:
    error = refused(source, path=manifest(tmp_path, "path\n"), **named)
    assert "line 1: there is no column" in error.cause
    for key in (setting, "data.path_column", "data.site_column", "data.split_column"):
        assert key in error.cure
    assert ("data.mask_column" in error.cure) == (source == "masks")


def test_a_manifest_in_which_no_image_has_a_label_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label\nimages/0.png,\nimages/1.png,\n")
    assert "no image has a label" in refused("manifest", path=path, label_separator="|").cause
    found = opened("manifest", path=path, label_separator="|", classes=["a"], missing="allow")
    assert found.train.targets.tolist() == [[0.0]]


def coco(root: Path, **changes: Any) -> Path:
    for number in range(6):
        picture(root / f"{number}.png", seed=number)
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 9, "width": 7} for n in range(6)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": (3, 7)[n % 2], "bbox": [0, 0, 3.5, 2]}
            for n in range(6)
        ],
        **changes,
    }
    path = root / "coco.json"
    path.write_text(json.dumps(data))
    return path


def test_coco_as_image_labels(tmp_path: Path) -> None:
    path = coco(tmp_path)
    found = opened("coco", path=path)
    assert found.classes == ("cat", "dog")
    assert len(found.train) == 4
    boxes = read_coco(path).images[1].boxes
    assert boxes[0].category == "dog"
    assert boxes[0].box == (0.0, 0.0, 3.5, 2.0)
    other = coco(tmp_path / "other")
    other.write_text(other.read_text() + " ")
    both = opened("coco", path=path, test_path=other, duplicates="report")
    assert len(both.train) == len(both.test) == 6


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"images": None}, "no list of objects 'images'"),
        ({"categories": [{"id": 3, "name": ""}]}, "categories[0]: 'name' is ''"),
        ({"categories": [{"id": 1.5, "name": "cat"}]}, "categories[0]: 'id' is 1.5"),
        ({"categories": [{"id": 3, "name": "a"}] * 2}, "categories[1]: id 3 is used twice"),
        ({"annotations": [{"image_id": 99, "category_id": 3}]}, "no image with id 99"),
        ({"annotations": [{"image_id": 0, "category_id": 9}]}, "no category with id 9"),
        (
            {"annotations": [{"image_id": 0, "category_id": 3, "bbox": [0, 0, 0, 2]}]},
            "annotations[0]: bbox",
        ),
        ({"annotations": []}, "image '0.png' has 0 categories"),
        (
            {"annotations": [{"image_id": 0, "category_id": c} for c in (3, 7)]},
            "image '0.png' has 2 categories (cat, dog)",
        ),
    ],
)
def test_coco_errors_name_the_entry(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    error = refused("coco", path=coco(tmp_path, **changes))
    assert cause in error.cause
    assert "coco.json" in error.cause


def test_coco_files_that_are_none(tmp_path: Path) -> None:
    assert "cannot be read" in refused("coco", path=tmp_path / "none.json").cause
    for text, cause in (("{", "is not JSON"), ("[]", "not a COCO file")):
        (tmp_path / "x.json").write_text(text)
        assert cause in refused("coco", path=tmp_path / "x.json").cause
    (tmp_path / "b").mkdir()
    other = coco(tmp_path / "b", categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "emu"}])
    assert "'dog'" in refused("coco", path=coco(tmp_path), test_path=other).cause
    same = coco(tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}])
    assert "two categories with the same name" in refused("coco", path=same).cause
