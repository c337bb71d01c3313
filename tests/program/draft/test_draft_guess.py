"""What a folder of own images holds is told from its layout, or refused with culprit and cure."""

from __future__ import annotations

from pathlib import Path

import own_folders
import pytest
from own_folders import class_folders, masks, people, picture, table, yolo

from fedsight.core.errors import DataError
from fedsight.program.draft.base import Asked, Found
from fedsight.program.draft.fitting import fitted, sampled
from fedsight.program.draft.guess import look


def found(path: Path, task: str | None = None, classes: tuple[str, ...] | None = None) -> Found:
    return look(path, Asked(task, classes))


@pytest.mark.parametrize(
    ("above", "by_site", "sites"),
    [
        (("",), False, 0),
        (("lyon", "oslo"), True, 2),
        (("train", "test"), False, 0),
        (("Training", "Validation"), False, 0),
        (("lyon/train", "lyon/val", "oslo/train", "oslo/val"), True, 2),
        (("train/lyon", "train/oslo", "test/lyon", "test/oslo"), True, 2),
        (("archive/data",), False, 0),
    ],
)
def test_class_folders(tmp_path: Path, above: tuple[str, ...], by_site: bool, sites: int) -> None:
    one = found(class_folders(tmp_path / "mine", above))
    assert one.guess.task == "classify"
    assert one.guess.data["name"] == "folder"
    assert one.guess.data.get("sites_in_path", False) == by_site
    assert one.opened.classes == own_folders.CLASSES
    assert len(set(one.opened.train.sites or ())) == sites


def test_sites_that_lack_classes_are_sites_still(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for site, kinds in {"lyon": "ab", "oslo": "bc", "turin": "ca"}.items():
        for kind in kinds:
            for number in range(4):
                picture(root / site / kind / f"{number}.png", ord(kind), 16, number)
    one = found(root)
    assert one.guess.data["sites_in_path"]
    assert one.opened.classes == ("a", "b", "c")


def test_folders_of_patients_below_classes_are_not_made_into_classes(tmp_path: Path) -> None:
    for kind, name in enumerate(("healthy", "ill")):
        for patient in range(5):
            picture(tmp_path / "mine" / name / f"p{kind}{patient}" / "1.png", kind)
    with pytest.raises(DataError, match="names are not shared") as caught:
        found(tmp_path / "mine")
    assert "'healthy/p00'" in caught.value.cause
    assert "path and label" in caught.value.cure


def test_people_are_told_by_their_folders(tmp_path: Path) -> None:
    assert found(people(tmp_path / "faces", [f"s{n}" for n in range(6)])).guess.task == "faces"
    names = ("Ada Lovelace", "Alan_Turing", "Grace Hopper", "Emmy_Noether", "Jean-Luc Picard")
    assert found(people(tmp_path / "mine", names)).guess.task == "faces"
    breeds = people(tmp_path / "dogs", ("boxer", "Border collie", "pug", "beagle"))
    assert found(breeds).guess.task == "classify"
    assert found(breeds, "faces").guess.data["name"] == "people"


@pytest.mark.parametrize(
    ("values", "mode", "settings"),
    [
        ((0, 255), "L", {"values": {"background": 0, "object": 255}}),
        ((0, 1), "L", {}),
        ((0, 1, 2), "L", {}),
        ((0, 1, 2), "P", {}),
        ((0, 128, 255), "L", {"values": {"background": 0, "class_1": 128, "class_2": 255}}),
        (
            (0, 1, 2),
            "RGB",
            {"colours": {"background": "#000000", "class_1": "#00c800", "class_2": "#c80000"}},
        ),
    ],
)
def test_masks_are_found_with_what_their_pixels_mean(
    tmp_path: Path, values: tuple[int, ...], mode: str, settings: dict[str, object]
) -> None:
    one = found(masks(tmp_path / "mine", values, mode))
    assert one.guess.task == "segment"
    data = {key: value for key, value in one.guess.data.items() if key in ("values", "colours")}
    assert data == settings
    assert len(one.guess.data["classes"]) == len(values)
    assert len(one.opened.train) + len(one.opened.test) == 12
    assert one.opened.train.targets is not None


def test_masks_of_parts_and_sites_keep_them(tmp_path: Path) -> None:
    for site in ("lyon", "oslo"):
        for part in ("train", "test"):
            masks(tmp_path / "mine" / site / part, (0, 1), count=4)
    one = found(tmp_path / "mine")
    assert set(one.opened.train.sites or ()) == {"lyon", "oslo"}
    assert (len(one.opened.train), len(one.opened.test)) == (8, 8)


def test_images_without_a_mask_are_counted(tmp_path: Path) -> None:
    root = masks(tmp_path / "mine", (0, 1))
    (root / "masks/3.png").unlink()
    one = found(root)
    assert "1 images have no mask and 0 masks no image: left out" in one.guess.reasons
    assert one.opened.passed_over == {"images without a mask": 1}


def test_outlines_are_for_segmentation_where_that_is_asked_for(tmp_path: Path) -> None:
    root = yolo(tmp_path / "mine")
    assert found(root).guess.task == "detect"
    for file in (root / "labels").rglob("*.txt"):
        file.write_text(f"{int(file.stem) % 2} 0.1 0.1 0.7 0.1 0.7 0.8\n")
    one = found(root, "segment")
    assert one.guess.data["name"] == "masks"
    assert one.opened.classes == ("background", "cup", "pen")


def test_boxes_of_every_format(tmp_path: Path) -> None:
    for path, names in (
        (yolo(tmp_path / "named"), ("cup", "pen")),
        (yolo(tmp_path / "numbered", named=False), ("class_0", "class_1")),
        (own_folders.coco(tmp_path / "coco"), ("cup", "pen")),
    ):
        one = found(path)
        assert one.guess.task == "detect"
        assert one.opened.classes == names
        assert len(one.opened.train) == len(one.opened.test) * 3 or len(one.opened.test) == 2


@pytest.mark.parametrize(
    ("columns", "labels", "task", "settings"),
    [
        ("path,label", ("cat", "dog"), "classify", {}),
        ("image;diagnosis", ("cat", "dog"), "classify", {"delimiter": ";"}),
        ("file_name,species", ("cat", "dog"), "classify", {"label_column": "species"}),
        ("Image,what", ("cat", "dog"), "classify", {"path_column": "Image"}),
        ("path,finding", ("a", "b", "a|b", ""), "multilabel", {"label_separator": "|"}),
        ("path,tags", ("a", "b", "['a', 'b']"), "multilabel", {"label_column": "tags"}),
    ],
)
def test_tables(
    tmp_path: Path, columns: str, labels: tuple[str, ...], task: str, settings: dict[str, str]
) -> None:
    root = table(tmp_path / "mine", labels, columns)
    for path in (root, root / "labels.csv"):
        one = found(path)
        assert one.guess.task == task
        assert settings.items() <= one.guess.data.items()
    assert set(one.opened.classes) == {x for x in labels if x.isalpha()}


def test_grades_need_an_order(tmp_path: Path) -> None:
    words = table(tmp_path / "words", ("low", "medium", "high"))
    with pytest.raises(DataError, match="order of the grades is not known") as caught:
        found(words, "ordinal")
    assert "--classes" in caught.value.cure
    order = ("low", "medium", "high")
    assert found(words, "ordinal", order).guess.data["classes"] == list(order)
    numbers = table(tmp_path / "numbers", ("10", "2", "1"))
    assert found(numbers, "ordinal").guess.data["classes"] == ["1", "2", "10"]
    assert found(words).guess.task == "classify"


def test_what_cannot_be_told_is_refused_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "flat/1.png", 0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("hello")
    (tmp_path / "list.csv").write_text("path,label\nnone.png,cat\n")
    for name, word in {
        "none": "does not exist",
        "empty": "it is empty",
        "flat": "side by side",
        "notes": ".txt",
        "list.csv": "no column with the paths of images",
        "flat/1.png": "is an image",
    }.items():
        with pytest.raises(DataError, match=word) as caught:
            found(tmp_path / name)
        assert str(tmp_path / name) in caught.value.cause
        assert caught.value.cure
    with pytest.raises(DataError, match="seems to be for the task 'classify'"):
        found(class_folders(tmp_path / "mine"), "detect")


@pytest.mark.parametrize(
    ("side", "size", "model"),
    [(8, 8, "small_cnn"), (28, 28, "small_cnn"), (70, 64, "small_cnn"), (140, 128, "torchvision")],
)
def test_size_and_model_fit_the_images(tmp_path: Path, side: int, size: int, model: str) -> None:
    one = found(class_folders(tmp_path / "mine", count=4, side=side))
    fit = fitted(one, sampled(one), None, None)
    assert (fit.data["size"], fit.model["name"]) == (size, model)
    assert fit.data["channels"] == 3
