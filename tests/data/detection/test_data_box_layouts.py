"""The split that public layouts of boxes state: kept, told, and refused where it cannot hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.detection.coco_set import coco_files
from fedsight.data.detection.voc_sets import image_sets

VOC = (
    "<annotation><filename>{}.png</filename><object><name>cat</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
NAMES = "cat\ndog\n"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 10), 90).save(path)


def yolo(root: Path, image: str, label: str, parts: dict[str, int]) -> Path:
    """`image` and `label` are the folders of a part `{}`."""
    for part, count in parts.items():
        for number in range(count):
            name = f"{Path(part).name}-{number}"
            picture(root / image.format(part) / f"{name}.png")
            text = root / label.format(part) / f"{name}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
    return root


def opened(path: Path, name: str = "boxes", **options: Any) -> Dataset:
    given = {"size": [10, 20], "channels": 1, **options}
    return sources.get(name)(path=path, **given).open()


def refused(path: Path, name: str = "boxes", **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(path, name, **options)
    assert caught.value.cure
    return caught.value


def shown(found: Dataset) -> dict[str, set[str]]:
    """The names of the images by part."""
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    return {
        name: {Path(part.images.name(index)).stem for index in range(len(part))}
        for name, part in parts.items()
        if part is not None
    }


def expected(**parts: str) -> dict[str, set[str]]:
    return {name: {f"{part}-{n}" for n in range(4)} for name, part in parts.items()}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}", "labels/{}"),
        ("{}/images", "{}/labels"),
        ("Images/{}", "Labels/{}"),
        ("coco/images/{}", "coco/labels/{}"),
        ("{}", "{}"),
        ("obj_{}_data", "obj_{}_data"),
        ("{}_images", "{}_labels"),
    ],
)
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "Valid", "Test"), ("train2017", "val2017", "test2017")],
)
def test_yolo_folders(
    tmp_path: Path, image: str, label: str, train: str, val: str, test: str
) -> None:
    yolo(tmp_path, image, label, dict.fromkeys((train, val, test), 4))
    (tmp_path / "classes.txt").write_text(NAMES)
    found = opened(tmp_path)
    assert shown(found) == expected(train=train, validation=val, test=test)
    assert f"{val}" in found.notes[0]
    assert "(validation)" in found.notes[0]
    assert found.train.counts(2).tolist() == [2, 2]


def test_label_files_in_capitals_are_read(tmp_path: Path) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "val": 4})
    for file in list((tmp_path / "labels").rglob("*.txt")):
        file.rename(file.with_suffix(".TXT"))
    (tmp_path / "classes.txt").write_text(NAMES)
    found = opened(tmp_path)
    assert found.train.counts(2).tolist() == [2, 2]
    assert not found.passed_over


def test_numbers_are_those_of_the_file_whatever_order_the_classes_have(tmp_path: Path) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 3, "val": 3})  # cat, dog, cat
    (tmp_path / "classes.txt").write_text(NAMES)
    found = opened(tmp_path, classes=["dog", "cat"])
    assert found.classes == ("dog", "cat")
    assert found.train.counts(2).tolist() == [1, 2]


def test_yolo_sites_with_parts_inside(tmp_path: Path) -> None:
    for site in ("lyon", "oslo"):
        yolo(tmp_path / site, "{}/images", "{}/labels", {"train": 4, "val": 2})
    (tmp_path / "classes.txt").write_text(NAMES)
    found = opened(tmp_path, sites_in_path=True)
    assert set(found.train.sites or ()) == {"lyon", "oslo"}
    assert (len(found.train), len(found.test)) == (8, 4)
    yolo(tmp_path / "oslo", "{}/images", "{}/labels", {"vla": 4})
    error = refused(tmp_path, sites_in_path=True)
    assert "oslo' has 'vla' beside 'train' and 'val'" in error.cause
    assert "did you mean 'val'?" in error.cure


@pytest.mark.parametrize("sites", [True, False])
def test_yolo_folders_with_a_misspelt_part(tmp_path: Path, sites: bool) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "vla": 4})
    (tmp_path / "classes.txt").write_text(NAMES)
    error = refused(tmp_path, sites_in_path=sites)
    assert "'vla' beside 'train'" in error.cause
    assert "did you mean 'val'?" in error.cure


KEYS = [
    "train: images/train\nval: images/val\ntest:\n",
    "path: .\ntrain: images/train/\nval: [images/val]\n",
    "train: ../images/train\nval: ../images/val\n",  # as Roboflow writes it
    "path: /home/somebody/sets\ntrain: images/train\nval: images/val\n",
    "train: train.txt\nval: lists/val.txt\n",
    "Train: images/train\nvalid: images/val\n",
    "training: images/train\ndev: images/val\ndownload: none\n",
]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("names", ["names: [cat, dog]\nnc: 2\n", "names:\n  0: cat\n  1: dog\n"])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_yolo_yaml(tmp_path: Path, keys: str, names: str, given: str) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "val": 4})
    picture(tmp_path / "images" / "spare" / "x.png")
    (tmp_path / "lists").mkdir()
    files = [f"./images/train/train-{n}.png" for n in range(4)]
    (tmp_path / "train.txt").write_text("\n".join(files) + "\n")
    files = [f"/far/away/images/val/val-{n}.png" for n in range(4)]
    (tmp_path / "lists/val.txt").write_text("\n".join(files) + "\n")
    (tmp_path / "data.yaml").write_text(keys + names)
    found = opened(tmp_path if given == "folder" else tmp_path / "data.yaml")
    assert found.classes == ("cat", "dog")
    assert shown(found) == expected(train="train", test="val")
    assert found.passed_over == {"in no part": 1}
    assert any("the validation part is the test part" in note for note in found.notes)


@pytest.mark.parametrize(
    ("yaml", "cause"),
    [
        ("train: images/train\nval: images/vla\nnames: [cat, dog]\n", "data.yaml, 'val': there is"),
        ("train: images/train\nval: images/train\nnames: [cat, dog]\n", "in the training part as"),
        ("val: images/val\nnames: [cat, dog]\n", "nothing is for training"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", "'nc' is 3, but 'names' has 2"),
        ("train: images/train\nnames:\n  1: cat\n  2: dog\n", "the keys of 'names' are not 0 to 1"),
        ("train: [\nnames: [cat]\n", "is not YAML"),
        ("train: images/train\nvla: images/val\nnames: [a, b]\n", "the key 'vla' names no part"),
        ("train: images/train\nval: images/val\nvalid: images/val\nnames: [a, b]\n", "both name"),
    ],
)
def test_yolo_yaml_that_cannot_hold(tmp_path: Path, yaml: str, cause: str) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "val": 4})
    (tmp_path / "data.yaml").write_text(yaml)
    assert cause in refused(tmp_path).cause


def test_yolo_lists_as_darknet_has_them(tmp_path: Path) -> None:
    yolo(tmp_path, "data/obj", "data/obj", {"one": 4})
    (tmp_path / "obj.names").write_text(NAMES)
    for name, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        lines = "".join(f"data/obj/one-{n}.png\n" for n in numbers)
        (tmp_path / f"{name}.txt").write_text(lines)
    found = opened(tmp_path)
    assert shown(found) == {
        "train": {"one-0", "one-1"},
        "validation": {"one-2"},
        "test": {"one-3"},
    }
    (tmp_path / "test.txt").write_text("data/obj/one-3.png\ndata/obj/two.png\n")
    assert "test.txt, line 2: there is no image" in refused(tmp_path).cause


@pytest.mark.parametrize("names", ["classes.txt", "labels/classes.txt", "images/obj.names"])
@pytest.mark.parametrize("path", [".", "images"])
def test_yolo_names_are_found_beside_images_and_labels(
    tmp_path: Path, names: str, path: str
) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "val": 4})
    (tmp_path / names).write_text(NAMES)
    assert opened(tmp_path / path).classes == ("cat", "dog")


def test_a_part_without_label_files_is_refused(tmp_path: Path) -> None:
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "val": 4})
    (tmp_path / "classes.txt").write_text(NAMES)
    (tmp_path / "labels/val/val-0.txt").unlink()
    assert any(
        note.startswith("1 of 8 images have no label file") for note in opened(tmp_path).notes
    )
    shutil.rmtree(tmp_path / "labels/val")
    error = refused(tmp_path)
    assert "none of the 4 images of the validation part has a label file" in error.cause
    assert str(tmp_path / "labels/val/val-0.txt") in error.cause
    (tmp_path / "labels").rename(tmp_path / "label")
    assert "none of the 4 images of the training part" in refused(tmp_path).cause
    yolo(tmp_path, "images/{}", "labels/{}", {"train": 4, "val": 4})
    for file in (tmp_path / "labels/val").iterdir():
        file.write_text("")
    assert "none of the 4 test images has a label" in refused(tmp_path).cause


def voc(root: Path, sets: dict[str, str]) -> Path:
    for number in range(8):
        name = f"{number:06d}"
        picture(root / "JPEGImages" / f"{name}.png")
        file = root / "Annotations" / f"{name}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(VOC.format(name))
    for name, numbers in sets.items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{int(n):06d}\n" for n in numbers))
    return root


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({"trainval": "0123", "test": "4567"}, ("0123", "", "4567")),
        ({"train": "012", "val": "34", "trainval": "01234", "test": "567"}, ("012", "34", "567")),
        ({"train": "0123", "val": "45", "cat_train": "67"}, ("0123", "", "45")),
        ({"trainval": "012345", "val": "45", "test": "6"}, ("0123", "45", "6")),
        ({"Train": "0123", "TEST": "45"}, ("0123", "", "45")),
    ],
)
@pytest.mark.parametrize("inside", [".", "VOCdevkit/VOC2007"])
def test_voc_image_sets(
    tmp_path: Path, sets: dict[str, str], expected: tuple[str, str, str], inside: str
) -> None:
    voc(tmp_path / inside, sets)
    found = opened(tmp_path)
    parts = shown(found)
    assert [
        "".join(sorted(name[-1] for name in parts.get(key, ())))
        for key in ("train", "validation", "test")
    ] == list(expected)
    left = 8 - sum(map(len, expected))
    assert found.passed_over == ({"in no image set": left} if left else {})
    assert any("image sets" in note for note in found.notes)


def test_voc_image_sets_that_cannot_hold(tmp_path: Path) -> None:
    voc(tmp_path, {"train": "0123", "test": "3456"})
    assert "test.txt, line 1: '000003' is in the training part" in refused(tmp_path).cause
    voc(tmp_path, {"train": "0123", "test": "459"})
    assert "test.txt, line 3: there is no annotation '000009.xml'" in refused(tmp_path).cause
    voc(tmp_path, {"train": "0123", "tset": "45", "test": "45"})
    error = refused(tmp_path)
    assert "tset.txt' lists images of no part" in error.cause
    assert "did you mean 'test'?" in error.cure


def test_voc_folders_of_parts(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        voc(tmp_path / part, {})
    found = opened(tmp_path)
    assert (len(found.train), len(found.test)) == (8, 8)
    other = tmp_path / "other"
    for part in ("train", "val"):
        shutil.copytree(tmp_path / "train/JPEGImages", other / "images" / part)
        shutil.copytree(tmp_path / "train/Annotations", other / "annotations" / part)
    found = opened(other)
    assert (len(found.train), len(found.test)) == (8, 8)
    assert image_sets(tmp_path) is None


def coco(file: Path, images: Path, prefix: str, start: int = 0, **more: Any) -> Path:
    table: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    table["categories"] = [{"id": 1, "name": "cat"}]
    for number in range(4):
        name = f"{prefix}-{number}.png"
        picture(images / name)
        table["images"].append({"id": start + number, "file_name": name, **more})
        box = {"image_id": start + number, "category_id": 1, "bbox": [1, 1, 8, 8]}
        table["annotations"].append(box)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table))
    return file


def as_coco(root: Path) -> Path:
    for part in ("train2017", "val2017"):
        coco(root / f"annotations/instances_{part}.json", root / part, part)
    (root / "annotations/captions_val2017.json").write_text('{"annotations": []}')
    keypoints = root / "annotations/person_keypoints_val2017.json"
    shutil.copy(root / "annotations/instances_val2017.json", keypoints)
    return root


def as_coco_in_images(root: Path) -> Path:
    for part in ("train2017", "val2017"):
        coco(root / f"annotations/instances_{part}.json", root / "images" / part, part)
    return root


def as_roboflow(root: Path) -> Path:
    for part in ("train2017", "val2017"):
        folder = root / part.replace("2017", "").replace("val", "valid")
        coco(folder / "_annotations.coco.json", folder, part)
    return root


@pytest.mark.parametrize("write", [as_coco, as_coco_in_images, as_roboflow])
@pytest.mark.parametrize("source", ["boxes", "coco"])
def test_coco_folders(tmp_path: Path, write: Callable[[Path], Path], source: str) -> None:
    found = opened(write(tmp_path), source)
    assert shown(found) == expected(train="train2017", test="val2017")
    assert len(coco_files(tmp_path)) == 2


@pytest.mark.parametrize("source", ["boxes", "coco"])
def test_a_coco_file_of_another_part_is_told(tmp_path: Path, source: str) -> None:
    path = as_coco(tmp_path) / "annotations/instances_train2017.json"
    found = opened(path, source, test_fraction=0.5)
    assert found.notes[0].startswith("'instances_val2017.json' beside 'instances_train2017.json'")
    shutil.copy(path, path.with_name("instances_extra.json"))
    error = refused(tmp_path, source)
    assert "instances_extra.json' says no part" in error.cause
    shutil.move(path.with_name("instances_extra.json"), path.with_name("instances_training.json"))
    assert "are both for the training part" in refused(tmp_path, source).cause


@pytest.mark.parametrize("source", ["boxes", "coco"])
def test_one_coco_file_with_several_parts(tmp_path: Path, source: str) -> None:
    first = json.loads(coco(tmp_path / "a.json", tmp_path, "train", split="train").read_text())
    more = json.loads(coco(tmp_path / "a.json", tmp_path, "val", 9, split="Val").read_text())
    both = {key: first[key] + more[key] for key in ("images", "annotations")}
    (tmp_path / "a.json").write_text(json.dumps({**both, "categories": first["categories"]}))
    assert shown(opened(tmp_path / "a.json", source)) == expected(train="train", test="val")
    for image in both["images"]:
        part = image.pop("split").lower()
        (tmp_path / part).mkdir(exist_ok=True)
        shutil.move(tmp_path / image["file_name"], tmp_path / part)
        image["file_name"] = f"{part}/{image['file_name']}"
    (tmp_path / "a.json").write_text(json.dumps({**both, "categories": first["categories"]}))
    assert shown(opened(tmp_path / "a.json", source)) == expected(train="train", test="val")


@pytest.mark.parametrize("source", ["boxes", "coco"])
@pytest.mark.parametrize("how", ["same", "dots", "link", "copy"])
def test_training_images_are_not_the_test_part(tmp_path: Path, source: str, how: str) -> None:
    path = coco(tmp_path / "all.json", tmp_path, "x")
    other = {
        "same": path,
        "dots": tmp_path / "." / ".." / tmp_path.name / "all.json",
        "link": tmp_path / "link.json",
        "copy": tmp_path / "copy.json",
    }[how]
    if how == "link":
        other.symlink_to(path)
    if how == "copy":
        shutil.copy(path, other)
    assert "data.path and data.test_path" in refused(path, source, test_path=other).cause


def test_folders_of_a_stated_test_part(tmp_path: Path) -> None:
    yolo(tmp_path / "a", "images/{}", "labels/{}", {"train": 4, "val": 4})
    yolo(tmp_path / "b", "images/{}", "labels/{}", {"x": 4})
    for name in ("a", "b"):
        (tmp_path / name / "classes.txt").write_text(NAMES)
    found = opened(tmp_path / "a", test_path=tmp_path / "b")
    assert shown(found) == expected(train="train", validation="val", test="x")
    inside = refused(tmp_path / "a", test_path=tmp_path / "a" / "images")
    assert "one is inside the other" in inside.cause
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert "are the same" in refused(tmp_path / "a", test_path=tmp_path / "c").cause
    assert "has a training part" in refused(tmp_path / "b", test_path=tmp_path / "a").cause
    (tmp_path / "a/images/val").rename(tmp_path / "a/images/test")
    (tmp_path / "a/labels/val").rename(tmp_path / "a/labels/test")
    assert "has a test part" in refused(tmp_path / "a", test_path=tmp_path / "b").cause
