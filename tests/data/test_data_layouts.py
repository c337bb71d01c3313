"""Folders of parts: found under any name, at any depth, and never made into sites or classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.layouts import arranged

TRAIN = ("train", "Training", "train2017", "TRAIN_images")
OTHERS = {"validation": ("val", "valid", "Dev"), "test": ("test", "Testing", "test2014")}
ROOT = Path("/data")


def tree(root: Path, *folders: str, count: int = 2) -> Path:
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("L", (6, 6), 9 * number + index).save(root / folder / f"{index}.png")
    return root


def opened(path: Path, name: str = "folder", **options: Any) -> Dataset:
    return sources.get(name)(path=path, **{"size": 6, "channels": 1, **options}).open()


def refused(path: Path, name: str = "folder", **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(path, name, **options)
    assert caught.value.cure
    return caught.value


def sizes(found: Dataset) -> tuple[int, int, int]:
    aside = 0 if found.validation is None else len(found.validation)
    return len(found.train), aside, len(found.test)


@given(
    st.sampled_from(TRAIN),
    st.fixed_dictionaries({key: st.sampled_from(words) for key, words in OTHERS.items()}),
    st.integers(0, 2),
    st.lists(st.sampled_from(["archive", "Data v2"]), max_size=2, unique=True),
)
def test_parts_stand_at_any_depth(
    train: str, others: dict[str, str], depth: int, wrappers: list[str]
) -> None:
    names = {train: "train", **{word: part for part, word in others.items()}}
    meaning = {}
    for site in ("lyon", "oslo"):
        for label in ("cat", "dog"):
            for name, part in names.items():
                bare = [site, label]
                whole = (*wrappers, *bare[:depth], name, *bare[depth:])
                meaning[whole] = (part, (site, label))
    found = arranged(meaning, ROOT, 2, exact=True)
    assert {one: (p.part, p.folders) for one, p in found.places.items()} == meaning
    assert any("(validation)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("folders", "sites", "expected"),
    [
        (("train/a", "train/b", "val/a", "val/b"), False, (4, 0, 4)),
        (("Training/a", "Training/b", "Testing/a", "Testing/b"), False, (4, 0, 4)),
        (("train/a", "train/b", "valid/a", "valid/b", "test/a"), False, (4, 4, 2)),
        (("a/train", "b/train", "a/val", "b/val", "b/test"), False, (4, 4, 2)),
        (("chest/train/a", "chest/train/b", "chest/val/a", "chest/test/b"), False, (4, 2, 2)),
        (("x/y/train/a", "x/y/train/b", "x/y/val/a"), False, (4, 0, 2)),
        (("train/s/a", "train/t/b", "val/s/b", "val/t/a"), True, (4, 0, 4)),
        (("s/train/a", "t/train/b", "s/val/b", "t/val/a"), True, (4, 0, 4)),
        (("all/s/train/a", "all/t/train/b", "all/t/val/a"), True, (4, 0, 2)),
        (("kitti-train_v2/a", "kitti-train_v2/b", "kitti-val_v2/a"), False, (4, 0, 2)),
        (("train/a/images", "train/b/images", "val/a/images"), False, (4, 0, 2)),
    ],
)
def test_public_layouts_of_class_folders(
    tmp_path: Path, folders: tuple[str, ...], sites: bool, expected: tuple[int, int, int]
) -> None:
    found = opened(tree(tmp_path, *folders), sites_in_path=sites)
    assert sizes(found) == expected
    assert found.classes == ("a", "b")
    assert set(found.train.sites or ()) == ({"s", "t"} if sites else set())
    assert any("(validation)" in note or "(test)" in note for note in found.notes)
    tested = expected[1] == 0 and not any("est" in folder for folder in folders)
    assert any("the validation part is the test part" in note for note in found.notes) == tested


def test_a_folder_around_everything_is_no_class(tmp_path: Path) -> None:
    found = opened(tree(tmp_path, "pets/cat", "pets/dog", count=5))
    assert found.classes == ("cat", "dog")
    assert sizes(found) == (8, 0, 2)
    assert found.notes == ("'pets' holds everything, and names nothing",)
    tree(tmp_path, "__MACOSX/cat")
    assert opened(tmp_path).classes == ("cat", "dog")


def test_a_lone_training_folder_has_its_test_part_drawn(tmp_path: Path) -> None:
    found = opened(tree(tmp_path, "train/cat", "train/dog", count=5))
    assert sizes(found) == (8, 0, 2)
    assert any("'train' is the only part" in note for note in found.notes)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = opened(tree(tmp_path, "bus", "train", "tram"))
    assert found.classes == ("bus", "train", "tram")
    assert found.notes == ()
    tree(tmp_path / "other", "train station", "test tube")
    assert opened(tmp_path / "other").classes == ("test tube", "train station")


@pytest.mark.parametrize(
    ("folders", "sites", "cause", "cure"),
    [
        (("train/a", "vla/a"), False, "'vla' beside 'train'", "did you mean 'val'?"),
        (("train/a", "vla/a"), True, "'vla' beside 'train'", "did you mean 'val'?"),
        (("train", "vla"), False, "'vla' beside 'train'", "did you mean 'val'?"),
        (("train/a", "tset/a", "val/a"), False, "'tset' beside", "did you mean 'test'?"),
        (("train/a", "test/a", "extra/a"), False, "'extra' beside", "rename it if it is a part"),
        (("s/train/a", "s/test/a", "t/train/a", "t/tests/a"), True, "'tests' beside", "'test'?"),
        (("a/train", "a/val", "b/train", "b/vlaid"), False, "'vlaid' beside", "'valid'?"),
        (("Train/a", "Train/b", "Val/a"), True, "not in a class folder", "sites_in_path = false"),
        (("train/s/a", "val/t/a"), False, "in a folder of its own", "sites_in_path = true"),
        (("val/a", "test/a"), False, "no training part", "add the folder"),
        (("val", "test"), False, "no training part", "add the folder"),
        (("train", "val"), False, "not in a class folder", "folder of its class"),
    ],
)
def test_a_name_that_is_no_part_is_refused_with_its_cure(
    tmp_path: Path, folders: tuple[str, ...], sites: bool, cause: str, cure: str
) -> None:
    for name, setting in (("folder", {}), ("people", {})):
        if name == "people" and "class folder" in cause:
            continue  # images of nobody have a message of their own
        error = refused(tree(tmp_path / name, *folders), name, sites_in_path=sites, **setting)
        assert cause in error.cause
        assert cure in error.cure


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "train/a", "train/b", "test/a")
    (tmp_path / "notes").mkdir()
    assert sizes(opened(tmp_path)) == (4, 0, 2)
    (tmp_path / "val").mkdir()
    assert "part 'val' has no images" in refused(tmp_path).cause


def test_people_of_three_parts(tmp_path: Path) -> None:
    folders = [f"faces/{part}/p{part}{n}" for part in ("Train", "Valid", "Test") for n in range(3)]
    found = opened(tree(tmp_path, *folders), "people")
    assert sizes(found) == (6, 6, 6)
    assert "'Valid' (validation)" in found.notes[0]


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)
    assert "is a link to a folder above it" in refused(tmp_path).cause
