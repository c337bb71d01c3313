"""What annotations of other tools look like: outlines, ids as text, counting from 0, difficult."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.detection.boxes import regions

VOC = (
    "<annotation><filename>{}.png</filename>"
    "<size><width>{}</width><height>20</height></size>{}</annotation>"
)
OBJECT = (
    "<object><name>cat</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def picture(path: Path, width: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, 20), 90).save(path)


def opened(path: Path, **settings: Any) -> Dataset:
    size = settings.pop("size", (20, 40))
    return sources.get("boxes")(path=path, size=size, channels=1, **settings).open()


def first_box(found: Dataset) -> list[float]:
    assert found.train.targets is not None
    return [round(value, 3) for value in found.train.targets[0, 0].tolist()]


def yolo(root: Path, *lines: str, names: str = "names: [cat]") -> Path:
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(names)
    for number in range(4):
        picture(root / f"images/{number}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{number}.txt").write_text("\n".join(lines))
    return root


def coco(root: Path, annotation: dict[str, Any], **ids: Any) -> Path:
    images, annotations = [], []
    image_ids, said = ids.get("images", range(4)), ids.get("said", range(4))
    for number, own in enumerate(image_ids):
        picture(root / f"{number}.png")
        images.append({"id": own, "file_name": f"{number}.png", "width": 40, "height": 20})
        annotations.append(
            {"image_id": said[number], "category_id": ids.get("category", 1), **annotation}
        )
    table = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": ids.get("known", 1), "name": "cat"}],
    }
    path = root / "boxes.json"
    path.write_text(json.dumps(table))
    return path


def voc(root: Path, *boxes: tuple[int, int, int, int], width: int = 40, hard: int = 0) -> Path:
    for number in range(4):
        picture(root / f"{number}.png", width)
        found = "".join(OBJECT.format(hard, *box) for box in boxes)
        (root / f"{number}.xml").write_text(VOC.format(number, width, found))
    return root


@pytest.mark.parametrize(
    "line",
    [
        "0 0.25 0.5 0.5 0.5",
        "0.0 0.25 0.5 0.5 0.5",
        "0 0 0.25 0.5 0.25 0.5 0.75 0 0.75",  # four corners: an outline, or a turned box
        "0 0.25 0.25 0.5 0.5 0.25 0.75 0 0.5",  # a diamond
        "0 0 0.75 0.1 0.25 0.5 0.3",  # a triangle
    ],
)
def test_yolo_lines_with_outlines_become_boxes(tmp_path: Path, line: str) -> None:
    found = opened(yolo(tmp_path, line))
    assert first_box(found) == [0, 0, 5, 20, 15]
    outlines = len(line.split()) > 5
    assert any("4 outlines count as the boxes" in note for note in found.notes) == outlines


def test_yolo_key_points_are_left_out_where_the_yaml_says_that_they_are_there(
    tmp_path: Path,
) -> None:
    names = "names: [cat]\nkpt_shape: [2, 2]"
    line = "0 0.25 0.5 0.5 0.5 0.1 0.1 0.9 0.9"
    assert first_box(opened(yolo(tmp_path, line, names=names))) == [0, 0, 5, 20, 15]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.25 0.5 0.5 0.5 0.91", "a confidence"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "a box or an outline"),
        ("0 0.1 0.2", "a box or an outline"),
        ("0.5 0.25 0.5 0.5 0.5", "not a class number"),
        ("0 nan 0.5 0.5 0.5", "a box or an outline"),
    ],
)
def test_other_yolo_lines_are_refused_by_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=r"0\.txt, line 2") as caught:
        opened(yolo(tmp_path, "0 0.25 0.5 0.5 0.5", line))
    assert said in caught.value.cause


@pytest.mark.parametrize(
    "annotation",
    [
        {"bbox": [0, 5, 20, 10], "segmentation": [[1, 6, 2, 6, 2, 7]]},  # the box counts
        {"segmentation": [[0, 5, 20, 5, 20, 15], [3, 6, 4, 6, 4, 7]]},
        {"bbox": [], "segmentation": [[0, 5, 20, 15, 20, 5]]},
        {"bbox": None, "segmentation": {"counts": [5, *[10] * 39, 405], "size": [20, 40]}},
    ],
)
def test_coco_without_boxes_has_those_around_its_segmentations(
    tmp_path: Path, annotation: dict[str, Any]
) -> None:
    assert first_box(opened(coco(tmp_path, annotation))) == [0, 0, 5, 20, 15]


def test_coco_with_neither_is_refused_by_entry(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\[0\]: it has neither a bbox nor"):
        opened(coco(tmp_path, {"segmentation": []}))


@pytest.mark.parametrize(
    ("images", "said", "category", "known"),
    [
        (["0", "1", "2", "3"], ["0", "1", "2", "3"], "1", "1"),
        (["0", "1", "2", "3"], [0, 1, 2, 3], 1, "1"),
        ([0, 1, 2, 3], ["0", " 1", "2", "3"], "1", 1),
        (["a7", "b", "0c", "007"], ["a7", "b", "0c", "007"], "cat-id", "cat-id"),
        ([0.0, 1.0, 2.0, 3.0], [0, 1, 2, 3], 1.0, 1),
        (["5f3d", 1, "x", 10**20], ["5f3d", "1", "x", 10**20], 1, 1),
    ],
)
def test_ids_are_numbers_or_texts(
    tmp_path: Path, images: list[Any], said: list[Any], category: Any, known: Any
) -> None:
    box = {"bbox": [0, 5, 20, 10]}
    path = coco(tmp_path, box, images=images, said=said, category=category, known=known)
    found = opened(path)
    assert found.train.counts(1).tolist() == [3]
    assert first_box(found) == [0, 0, 5, 20, 15]


@pytest.mark.parametrize(
    ("images", "said", "cause"),
    [
        ([7, "007", 2, 3], [7, "07", 2, 3], "no image with id '07'"),
        ([1, "1", 2, 3], [1, 1, 2, 3], "id 1 is used twice"),
        ([True, 1, 2, 3], [1, 1, 2, 3], "'id' is True"),
        ([None, 1, 2, 3], [1, 1, 2, 3], "'id' is None"),
    ],
)
def test_ids_that_are_no_such_thing_are_refused(
    tmp_path: Path, images: list[Any], said: list[Any], cause: str
) -> None:
    with pytest.raises(DataError) as caught:
        opened(coco(tmp_path, {"bbox": [0, 5, 20, 10]}, images=images, said=said))
    assert cause in caught.value.cause


@pytest.mark.parametrize("width", [40, 1200, 5000])
@pytest.mark.parametrize("outside", ["error", "clip", "skip"])
def test_voc_that_counts_from_0_names_the_setting_however_wide_its_images_are(
    tmp_path: Path, width: int, outside: str
) -> None:
    path = voc(tmp_path, (0, 0, 10, 10), (20, 5, 30, 15), width=width)
    with pytest.raises(DataError, match="4 of 8 boxes, and none") as caught:
        opened(path, size=(20, width), outside=outside)
    assert "data.first_pixel = 0" in caught.value.cure
    assert "0.xml, object 1" in caught.value.cause
    found = opened(path, size=(20, width), first_pixel=0)
    assert first_box(found) == [0, 0, 0, 10, 10]
    assert first_box(opened(path, size=(20, width), first_pixel=1, outside="clip"))[3:] == [10, 10]


def test_one_box_at_0_among_many_is_evidence_and_one_at_the_edge_is_said(tmp_path: Path) -> None:
    path = voc(tmp_path, (1, 1, 40, 20))
    assert first_box(opened(path)) == [0, 0, 0, 40, 20]
    (path / "3.xml").write_text(VOC.format(3, 40, OBJECT.format(0, 5, 0, 9, 9)))
    with pytest.raises(DataError, match=r"3\.xml, object 1.*1 of 4 boxes, but") as caught:
        opened(path)
    assert "or data.first_pixel = 1" in caught.value.cure


def test_turned_boxes_of_voc_are_called_so(tmp_path: Path) -> None:
    voc(tmp_path, (1, 1, 9, 9))
    file = next(tmp_path.rglob("*.xml"))
    file.write_text(file.read_text().replace("bndbox", "robndbox"))
    with pytest.raises(DataError, match="turned box") as caught:
        opened(tmp_path)
    assert "upright boxes" in caught.value.cure


def test_difficult_objects_are_marked_and_said(tmp_path: Path) -> None:
    path = voc(tmp_path, (1, 1, 10, 10))
    (path / "2.xml").write_text(
        VOC.format(2, 40, OBJECT.format(0, 1, 1, 10, 10) + OBJECT.format(1, 11, 1, 20, 10))
    )
    found = opened(path)
    assert any("1 objects are difficult: trained on" in note for note in found.notes)
    total = 0
    for part in (found.train, found.test):
        assert part.targets is not None
        shown, _, crowds = regions(part.targets)
        assert not crowds.any()
        total += int(shown.sum())
        if shown.any():
            assert part.targets[shown][0, 1:].tolist() == [10, 0, 20, 10]
    assert total == 1
    (path / "2.xml").write_text(VOC.format(2, 40, OBJECT.format("maybe", 1, 1, 10, 10)))
    with pytest.raises(DataError, match="object 1: difficult is 'maybe'"):
        opened(path)


def test_files_beside_images_and_annotations_are_counted(tmp_path: Path) -> None:
    for kind, path in (
        ("coco", coco(tmp_path / "c", {"bbox": [0, 5, 20, 10]})),
        ("voc", voc(tmp_path / "v", (1, 1, 10, 10))),
    ):
        picture(path.parent / "late.png" if kind == "coco" else path / "late.png")
        (tmp_path / kind[0] / "clip.mp4").touch()
        (tmp_path / kind[0] / "Thumbs.db").touch()
        found = opened(path)
        assert found.passed_over == {
            ".mp4": 1,
            "images without annotations": 1,
            "system files": 1,
        }
    yolo(tmp_path / "y", "0 0.25 0.5 0.5 0.5")
    (tmp_path / "y/labels/gone.txt").write_text("0 0.25 0.5 0.5 0.5")
    (tmp_path / "y/labels/classes.txt").write_text("cat")
    (tmp_path / "y/images/gone.tga").touch()
    (tmp_path / "y/labels.zip").touch()
    found = opened(tmp_path / "y")
    assert found.passed_over == {".tga": 1, ".zip": 1, "label files without an image": 1}
    assert any("extract" in note for note in found.notes)
