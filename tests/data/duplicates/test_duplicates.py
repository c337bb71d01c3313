"""Copies of images in a person's own files: refused, reported, left out, held out together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, Part, sources
from tests.data.duplicates.test_alike import PROMISED, photograph


def save(path: Path, seed: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(seed)).save(path, **options)
    return path


def parts(root: Path, train: int = 6, test: int = 3) -> Path:
    """train/class/n.png and test/class/n.png, all different."""
    for part, count, first in (("train", train, 0), ("test", test, 500)):
        for place, label in enumerate("ab"):
            for number in range(count):
                save(root / part / label / f"{number}.png", first + 100 * place + number)
    return root


def opened(root: Path, name: str = "folder", **options: Any) -> Dataset:
    return sources.get(name)(**{"path": root, "size": 24, **options}).open()


def refused(root: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(root, **options)
    return caught.value


def names(part: Part | None) -> list[str]:
    assert part is not None
    return ["/".join(Path(part.images.name(i)).parts[-3:]) for i in range(len(part))]


def test_a_set_without_copies_has_none(tmp_path: Path) -> None:
    found = opened(parts(tmp_path))
    assert found.duplicates is not None
    assert not any(found.duplicates.exact.counts().values())
    assert not any(found.duplicates.near.counts().values())
    assert not any("cop" in note for note in found.notes)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_copies_in_training_and_test_are_refused_with_both_names(
    tmp_path: Path, suffix: str, in_memory: bool
) -> None:
    parts(tmp_path)
    for number in (0, 1):  # of another name, and of another format without loss
        with Image.open(tmp_path / f"train/a/{number}.png") as image:
            image.save(tmp_path / f"test/a/copy{number}.{suffix}")
    error = refused(tmp_path, in_memory=in_memory)
    assert f"test/a/copy0.{suffix}' (test, a)" in error.cause
    assert "train/a/0.png' (training, a)" in error.cause
    assert error.cause.endswith("have a copy in an earlier part: 2")
    assert 'data.duplicates = "drop"' in error.cure
    said = opened(tmp_path, duplicates="report", in_memory=in_memory)
    assert len(said.train), len(said.test) == (12, 8)
    assert said.duplicates is not None
    assert said.duplicates.exact.across_parts == said.duplicates.exact.copies == 2
    assert any(note.startswith("exact copies of other images: 2") for note in said.notes)
    dropped = opened(tmp_path, duplicates="drop", in_memory=in_memory)
    assert (len(dropped.train), len(dropped.test)) == (10, 8)
    assert "train/a/0.png" not in names(dropped.train)
    assert dropped.passed_over == {"copies": 2}
    assert opened(tmp_path, duplicates="keep", near_duplicates="keep").duplicates is None


def test_copies_in_validation_are_refused_too(tmp_path: Path) -> None:
    parts(tmp_path)
    for label in "ab":
        save(tmp_path / f"val/{label}/x.png", 900 + ord(label))
    shutil.copy(tmp_path / "val/a/x.png", tmp_path / "test/a/y.png")
    error = refused(tmp_path)
    assert "test/a/y.png' (test, a)" in error.cause
    assert "val/a/x.png' (validation, a)" in error.cause


def test_one_image_with_two_labels_is_refused(tmp_path: Path) -> None:
    parts(tmp_path)
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/b/again.png")
    error = refused(tmp_path)
    assert "train/b/again.png' (training, b)" in error.cause
    assert "train/a/0.png' (training, a) are equal, but have two labels" in error.cause
    dropped = opened(tmp_path, duplicates="drop")
    assert not {"train/a/0.png", "train/b/again.png"} & set(names(dropped.train))
    assert dropped.passed_over == {"copies with two labels": 2}


def test_copies_in_one_part_are_said(tmp_path: Path) -> None:
    parts(tmp_path)
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/a/again.png")
    found = opened(tmp_path)
    assert found.duplicates is not None
    assert (found.duplicates.exact.copies, found.duplicates.exact.across_parts) == (1, 0)
    assert any("exact copies of other images: 1; for example" in note for note in found.notes)
    assert len(opened(tmp_path, duplicates="drop").train) == 12


def test_drawn_test_parts_keep_copies_together(tmp_path: Path) -> None:
    for number in range(20):
        for label, first in (("a", 0), ("b", 100)):
            save(tmp_path / label / f"{number}.png", first + number)
            shutil.copy(tmp_path / label / f"{number}.png", tmp_path / label / f"{number}-copy.png")
    found = opened(tmp_path)
    train, test = (
        {Path(name).stem.removesuffix("-copy") + name.split("/")[-2] for name in names(part)}
        for part in (found.train, found.test)
    )
    assert test
    assert not train & test
    assert found.duplicates is not None
    assert found.duplicates.exact.counts() == {
        **dict.fromkeys(found.duplicates.exact.counts(), 0),
        "copies": 40,
    }


def test_copies_at_two_sites_are_said(tmp_path: Path) -> None:
    for place, site in enumerate(("north", "south")):
        for number in range(6):
            for at, label in enumerate("ab"):
                save(tmp_path / site / label / f"{number}.png", 100 * place + 30 * at + number)
    shutil.copy(tmp_path / "north/a/0.png", tmp_path / "south/a/9.png")
    found = opened(tmp_path, sites_in_path=True)
    assert found.duplicates is not None
    assert found.duplicates.exact.across_sites == 1
    assert any("at two sites: 1" in note for note in found.notes)


@pytest.mark.parametrize("kind", PROMISED)
def test_near_copies_are_said_and_refused_or_dropped_as_set(tmp_path: Path, kind: str) -> None:
    parts(tmp_path)
    changed = PROMISED[kind](photograph(1))
    Image.fromarray(changed).save(tmp_path / "test/a/near.png")
    options: dict[str, Any] = {"duplicates": "report"}  # a PNG is an exact copy
    found = opened(tmp_path, **options)
    assert found.duplicates is not None
    whole = found.duplicates.exact.across_parts + found.duplicates.near.across_parts
    assert whole == 1
    if kind != "PNG":
        assert refused(tmp_path, near_duplicates="error").cause.count("test/a/near.png") == 1
    dropped = opened(tmp_path, **options, near_duplicates="drop")
    assert len(dropped.train) == 11
    assert "train/a/1.png" not in names(dropped.train)


def test_images_that_only_the_network_sees_as_equal_are_no_exact_copies(tmp_path: Path) -> None:
    parts(tmp_path)
    fine = photograph(1).copy()
    fine[0, 0, 0] ^= 1  # a change that resizing loses
    Image.fromarray(fine).save(tmp_path / "test/a/fine.png")
    found = opened(tmp_path, size=4)
    assert found.duplicates is not None
    assert found.duplicates.exact.copies == 0
    assert found.duplicates.near.across_parts >= 1


def test_blank_images_are_counted_and_not_refused(tmp_path: Path) -> None:
    parts(tmp_path)
    for place in ("train/a", "train/b", "test/a"):
        Image.new("L", (40, 40)).save(tmp_path / place / "blank.png")
    found = opened(tmp_path)
    assert found.duplicates is not None
    assert (found.duplicates.exact.copies, found.duplicates.exact.across_parts) == (2, 1)


def test_boxes_and_masks_compare_images_alone(tmp_path: Path) -> None:
    lines = ["path,mask,split"]
    for number in range(8):
        save(tmp_path / f"{number}.png", number)
        mask = np.zeros((96, 96), np.uint8)
        mask[: 10 + number] = 1
        Image.fromarray(mask).save(tmp_path / f"{number}-mask.png")
        lines.append(f"{number}.png,{number}-mask.png,{'train' if number < 5 else 'test'}")
    shutil.copy(tmp_path / "0.png", tmp_path / "7.png")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"7.png' \(test\) and .*0.png' \(training\) are equal"):
        opened(tmp_path / "m.csv", "masks", classes=["ground", "roof"])
    for number in range(8):
        for part in ("train", "val"):
            (tmp_path / "yolo/labels" / part).mkdir(parents=True, exist_ok=True)
            save(tmp_path / f"yolo/images/{part}/{number}.png", number + 50 * (part == "val"))
            (tmp_path / f"yolo/labels/{part}/{number}.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "yolo/classes.txt").write_text("cat\n")
    assert opened(tmp_path / "yolo", "boxes").duplicates is not None
    shutil.copy(tmp_path / "yolo/images/train/3.png", tmp_path / "yolo/images/val/4.png")
    with pytest.raises(DataError, match=r"val/4.png' \(test\) and .*train/3.png' \(training\)"):
        opened(tmp_path / "yolo", "boxes")
    left = opened(tmp_path / "yolo", "boxes", duplicates="drop")
    assert left.train.targets is not None
    assert len(left.train) == len(left.train.targets) == 7


def test_equal_texts_are_said_and_held_out_together(tmp_path: Path) -> None:
    rows = [{"text": f"word{n} and more {n % 7}", "label": "ab"[n % 2]} for n in range(30)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, *rows])))
    found = opened_texts(path)
    assert found.duplicates is not None
    assert (found.duplicates.exact.copies, found.duplicates.exact.across_parts) == (30, 0)
    path.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "label": "b"}])))
    with pytest.raises(DataError, match="two labels"):
        opened_texts(path, duplicates="error")


def opened_texts(path: Path, **options: Any) -> Dataset:
    return sources.get("texts")(path=path, length=8, **options).open()
