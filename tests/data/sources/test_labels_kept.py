"""Labels keep their meaning, whichever source they come from."""

from __future__ import annotations

import json
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pytest
from PIL import Image

from fedsight.core.errors import ConfigError, DataError
from fedsight.data.base import Dataset, sources
from fedsight.program.config import parse
from fedsight.program.federation import federate


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def manifest(root: Path, text: str | bytes, images: int = 12) -> Path:
    for number in range(images):
        picture(root / "images" / f"{number:03d}.png", seed=number)
    path = root / "all.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(labels: list[str], columns: str = "path,label", more: str = "") -> str:
    lines = [f"images/{n:03d}.png,{label}{more}" for n, label in enumerate(labels)]
    return "\n".join([columns, *lines]) + "\n"


opened = partial(opened_sources.opened, size=8, channels=1)
refused = partial(opened_sources.refused, size=8, channels=1)


# Names of classes


def test_folders_of_two_spellings(tmp_path: Path) -> None:
    spelt = [unicodedata.normalize(form, "mélanome") for form in ("NFC", "NFD")]
    for place, (site, name) in enumerate(zip("ab", spelt, strict=True)):
        for number in range(5):
            picture(tmp_path / site / name / f"{number}.png", 20 * place + number)
            picture(tmp_path / site / "naevus" / f"{number}.png", 20 * place + 9 + number)
    options: dict[str, Any] = {"path": tmp_path, "sites_in_path": True}
    error = refused("folder", **options)
    assert "'mélanome' (5 images" in error.cause
    assert r"'me\u0301lanome' (5 images" in error.cause
    merged = opened("folder", **options, similar_names="merge")
    assert merged.classes == (spelt[0], "naevus")
    assert merged.train.counts(2).sum() == 16
    assert "is read as 'mélanome'" in merged.notes[0]
    assert len(opened("folder", **options, similar_names="keep").classes) == 3
    listed = opened("folder", **options, classes=["naevus", spelt[1]], similar_names="merge")
    assert listed.classes == ("naevus", spelt[1])


def test_leading_zeros_stay_and_are_told_apart(tmp_path: Path) -> None:
    path = manifest(tmp_path, rows(["007", "010", "100"] * 4))
    assert opened("manifest", path=path).classes == ("007", "010", "100")
    error = refused("manifest", path=manifest(tmp_path, rows(["7", "007", "8"] * 4)))
    for said in ("'7' (4 images, first", "all.csv, line 2)", "'007' (4 images, first"):
        assert said in error.cause
    assert "differ only in how the number is written" in error.cause


def test_two_spellings_in_boxes_and_coco(tmp_path: Path) -> None:
    def entry(number: int, category: int) -> dict[str, Any]:
        return {"image_id": number, "category_id": category, "bbox": [0, 0, 4, 5]}

    table = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(8)],
        "categories": [{"id": 1, "name": "Cat"}, {"id": 2, "name": "cat "}, {"id": 3, "name": "d"}],
        "annotations": [entry(n, 1 + n % 3) for n in range(8)],
    }
    for number in range(8):
        picture(tmp_path / f"{number}.png", number)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(table))
    for source, things in (("coco", "images"), ("boxes", "objects")):
        error = refused(source, path=path)
        assert f"'Cat' (3 {things}" in error.cause
        assert f"'cat ' (3 {things}" in error.cause
        found = opened(source, path=path, similar_names="merge")
        assert found.classes == ("Cat", "d")
        assert sum(found.train.counts(2)) + sum(found.test.counts(2)) == 8
        assert "'cat ' (3" in found.notes[0]


def test_texts_and_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def written(labels: list[Any]) -> None:
        lines = (json.dumps({"text": f"word {n}", "label": one}) for n, one in enumerate(labels))
        path.write_text("\n".join(lines))

    source: Any = sources.get("texts")
    written(["good", "Good"] * 5)
    with pytest.raises(DataError, match="differ only in case"):
        source(path=path).open()
    assert source(path=path, similar_names="merge").open().classes == ("Good",)
    written([["a", "b"], ["a"], []] * 4)
    with pytest.raises(DataError, match="several in one"):
        source(path=path).open()
    found = source(path=path, label_separator="|").open()
    assert found.classes == ("a", "b")
    assert found.train.targets.sum(0).tolist() == found.train.counts(2).tolist()


# Several labels in one cell


@pytest.mark.parametrize("cells", [["a|b", "a", "b"], ["['a', 'b']", "['a']", "['b']"]])
def test_cells_with_several_labels(tmp_path: Path, cells: list[str]) -> None:
    path = manifest(tmp_path, rows([f'"{cell}"' for cell in cells] * 4))
    error = refused("manifest", path=path)
    assert "several in one" in error.cause
    assert "data.label_separator" in error.cure
    found = opened("manifest", path=path, label_separator="|")
    assert found.classes == ("a", "b")
    assert found.train.targets is not None
    assert {tuple(row) for row in found.train.targets.tolist()} == {(1, 1), (1, 0), (0, 1)}
    whole = opened("manifest", path=path, classes=sorted(set(cells)))  # meant as they are
    assert whole.train.targets is None


def test_the_task_multilabel_asks_for_the_separator(tmp_path: Path) -> None:
    path = manifest(tmp_path, rows(["a", "b"] * 6))
    with pytest.raises(ConfigError) as caught:
        federate(program(path, "multilabel"))
    assert "data.label_separator" in caught.value.problems[0].cure


def program(path: Path, task: str, **data: Any) -> Any:
    table = {"name": "manifest", "path": str(path), "size": 8, "channels": 1, **data}
    return parse({"data": table, "split": {"sites": 2}, "task": {"name": task}}, path.parent)[0]


# Grades


def test_grades_need_an_order(tmp_path: Path) -> None:
    path = manifest(tmp_path, rows(["low", "medium", "high"] * 4))
    with pytest.raises(ConfigError) as caught:
        federate(program(path, "ordinal"))
    problem = caught.value.problems[0]
    assert problem.where == "data.classes"
    assert '["high", "low", "medium"] is alphabetical' in problem.cure
    ordered = ["low", "medium", "high"]
    assert federate(program(path, "ordinal", classes=ordered)).dataset.classes == tuple(ordered)
    assert federate(program(path, "classify")).dataset.classes == ("high", "low", "medium")
    path = manifest(tmp_path, rows([str(n % 12) for n in range(48)]), 48)
    numbers = federate(program(path, "ordinal")).dataset.classes
    assert numbers == tuple(str(n) for n in range(12))


# Tables


@pytest.mark.parametrize(
    ("text", "cause", "cure"),
    [
        ("path,label,label\n", "line 1: columns 2 and 3 are both called 'label'", "rename"),
        ("path, label ,label\n", "line 1: columns 2 and 3 are both called 'label'", "rename"),
        (rows(["a"] * 3) + rows(["b"] * 2), "line 5 is the first line again", "remove it"),
        ("path;label\nimages/000.png;a\n", "no column 'path'", 'data.delimiter = ";"'),
        ("path\tlabel\nimages/000.png\ta\n", "no column 'path'", r'data.delimiter = "\t"'),
        (
            rows(["a"] * 4) + "./images/001.png,b\n",
            "line 6: lists",
            "several labels of an image belong in one entry",
        ),
        (
            rows(["a"] * 2, "path,label,split", ",train") + "images/000.png,a,test\n",
            "with another part than",
            "keep the right one",
        ),
        (
            rows(["a"] * 2, "path,label,site", ",x") + "images/../images/001.png,a,y\n",
            "line 4: lists",
            "keep the right one",
        ),
        (
            b"path,label\nimages/000.png,a\nimages/001.png,caf\xe9\n",
            "all.csv', line 3 is not UTF-8",
            "UTF-8",
        ),
        ("path,label\nC:\\x\\0.png,a\n", "line 2: there is no image", "correct the path"),
    ],
)
def test_a_table_s_fault_is_named(tmp_path: Path, text: str | bytes, cause: str, cure: str) -> None:
    error = refused("manifest", path=manifest(tmp_path, text))
    assert cause in error.cause
    assert "all.csv" in error.cause
    assert cure in error.cure


def test_both_entries_of_an_image_are_named(tmp_path: Path) -> None:
    path = manifest(tmp_path, rows(["a", "b"] * 2) + "images/001.png,a\n")
    cause = refused("manifest", path=path).cause
    assert "line 6: lists" in cause
    assert "another label than" in cause
    assert "line 3 does: 'a' and 'b'" in cause


def test_an_image_that_is_listed_again_counts_once(tmp_path: Path) -> None:
    once = rows(["a", "b"] * 6)
    found = opened("manifest", path=manifest(tmp_path, once + once.split("\n", 1)[1]))
    assert len(found.train) + len(found.test) == 12
    names = [part.images.name(n) for part in (found.train, found.test) for n in range(len(part))]
    assert len(set(names)) == 12
    assert found.notes == ("12 entries list an image again; each image counts once",)
    plain = opened("manifest", path=manifest(tmp_path, once))
    assert np.array_equal(plain.test.labels, found.test.labels)


@pytest.mark.parametrize(
    "text",
    [
        rows(["a", "b"] * 6).encode("utf-16"),
        b"\xff\xfe" + rows(["a", "b"] * 6).encode("utf-16-le"),
        b"\xef\xbb\xbf" + rows(["a", "b"] * 6).encode(),
        rows(["a", "b"] * 6).replace("\n", "\r\n"),
        rows(["a", "b"] * 6) + "\n\n , \n,\n",
        rows(["a", "b"] * 6, " path , label"),
        rows(["a", "b"] * 6).replace("images/", "images\\"),
        rows(['"a"', ' "b"'] * 6),
        rows(["a", "b"] * 6, "path,label,note", ',"two\nlines"'),
    ],
)
def test_tables_as_people_save_them(tmp_path: Path, text: str | bytes) -> None:
    found = opened("manifest", path=manifest(tmp_path, text))
    assert found.classes == ("a", "b")
    assert len(found.train) + len(found.test) == 12


def test_lines_are_counted_over_values_with_several_lines(tmp_path: Path) -> None:
    text = 'path,label,note\nimages/000.png,a,"one\ntwo"\n\nimages/999.png,a,x\n'
    assert "line 5: there is no image" in refused("manifest", path=manifest(tmp_path, text)).cause


# Masks


def masks(root: Path, drawn: list[Any], **options: Any) -> Dataset:
    """The data set of masks with one row of `drawn` each; the last image is the test part."""
    lines = ["path,mask,split"]
    for number, row in enumerate(drawn):
        mask = np.array([row], np.uint8)
        Image.fromarray(mask).save(root / f"m{number}.png")
        Image.fromarray(mask).save(root / f"i{number}.png")
        part = "test" if number == len(drawn) - 1 else "train"
        lines.append(f"i{number}.png,m{number}.png,{part}")
    (root / "m.csv").write_text("\n".join(lines))
    given = {"classes": ["ground", "cat", "dog"], "size": [1, 4], **options}
    return opened("masks", path=root / "m.csv", **given)


def test_a_class_without_a_pixel_is_refused_or_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training image shows a pixel of class 'dog'"):
        masks(tmp_path, [[0, 1, 0, 0], [0, 1, 2, 0]])
    with pytest.raises(DataError, match="no test image shows a class beside 'ground'"):
        masks(tmp_path, [[0, 1, 2, 0], [0, 0, 0, 0]])
    found = masks(tmp_path, [[0, 1, 2, 0], [0, 1, 0, 0]])
    assert found.notes == ("no test image shows a pixel of class 'dog': it is not measured",)
    found = masks(tmp_path, [[0, 1, 0, 0], [0, 0, 0, 0]], missing="allow")
    assert len(found.notes) == 3
    found = masks(tmp_path, [[1, 1, 2, 2], [1, 2, 2, 1]])
    assert found.notes == (
        "no training image shows a pixel of class 'ground'",
        "no test image shows a pixel of class 'ground': it is not measured",
    )


def test_a_class_that_resizing_loses_is_said(tmp_path: Path) -> None:
    thin = [[0, 0, 1, 0, 0, 0, 2, 2], [0, 0, 1, 0, 0, 0, 2, 2]]
    with pytest.raises(DataError, match=r"class 'cat' at 1 x 4 \(2 masks show it at full size\)"):
        masks(tmp_path, thin)
    wide = [0, 0, 1, 1, 0, 0, 2, 2]
    found = masks(tmp_path, [wide, thin[0], wide])
    assert found.notes[-1] == "masks that lose all pixels of class 'cat' at 1 x 4: 1"


def test_black_and_white_masks_are_trained_on_once_mapped(tmp_path: Path) -> None:
    rows = [[0, 255, 255, 0], [255, 0, 0, 0], [0, 255, 0, 0]]
    named = ["background", "lesion"]
    with pytest.raises(DataError) as caught:
        masks(tmp_path, rows, classes=named)
    assert "m.csv, line 2: mask" in caught.value.cause
    assert "data.values = {background = 0, lesion = 255}" in caught.value.cure
    values = {"background": 0, "lesion": 255}
    found = masks(tmp_path, rows, classes=named, values=values)
    assert found.train.targets is not None
    assert found.train.targets.tolist() == [[[0, 1, 1, 0]], [[1, 0, 0, 0]]]
    with pytest.raises(DataError, match=r"data\.values: class 'lesion' has no value"):
        masks(tmp_path, rows, classes=named, values={"background": 0})
