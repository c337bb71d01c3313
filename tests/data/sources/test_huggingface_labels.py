"""Labels of Hugging Face tables: each type is read as what it is, or refused by its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources
from fedsight.data.single_draws import drawn_singly

datasets: Any = pytest.importorskip("datasets")

NAMES = datasets.ClassLabel(names=["low", "middle", "high"])
STRING, WHOLE = datasets.Value("string"), datasets.Value("int64")


def opened(root: Path, labels: list[Any], feature: Any, **options: Any) -> Dataset:
    """The data set of small pictures with `labels`, saved and read."""
    pictures = [Image.fromarray(np.full((4, 4), 9 * n, np.uint8)) for n in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    table.save_to_disk(str(root / "saved"))
    given = {"path": root / "saved", "size": 4, "channels": 1, **options}
    return sources.get("huggingface")(**given).open()


def targets(found: Dataset) -> set[tuple[float, ...]]:
    assert found.train.targets is not None
    return {tuple(row) for row in found.train.targets.tolist()}


@pytest.mark.parametrize(
    ("labels", "feature", "classes"),
    [
        ([0, 1, 2], NAMES, ("low", "middle", "high")),
        ([True, False, True], datasets.Value("bool"), ("false", "true")),
        ([1, 10, 2], WHOLE, ("1", "2", "10")),
        ([1.0, 10.0, 2.0], datasets.Value("float32"), ("1", "2", "10")),
        (["b ", "a", "b"], STRING, ("a", "b")),
    ],
)
def test_one_label_in_each_row(
    tmp_path: Path, labels: list[Any], feature: Any, classes: tuple[str, ...]
) -> None:
    found = opened(tmp_path, labels * 4, feature)
    assert found.classes == classes
    assert found.train.targets is None


@pytest.mark.parametrize(
    ("labels", "inner", "classes"),
    [
        ([[0, 1], [2], [], [1, 1]], NAMES, ("low", "middle", "high")),
        ([["a", "b"], ["c"], [], ["b"]], STRING, ("a", "b", "c")),
        ([[3, 4], [12], [], [4]], WHOLE, ("3", "4", "12")),
    ],
)
def test_lists_are_several_labels(
    tmp_path: Path, labels: list[Any], inner: Any, classes: tuple[str, ...]
) -> None:
    found = opened(tmp_path, labels * 4, datasets.List(inner))
    assert found.classes == classes
    assert targets(found) == {(1, 1, 0), (0, 0, 1), (0, 0, 0), (0, 1, 0)}


def test_strings_with_several_labels_need_the_separator(tmp_path: Path) -> None:
    labels = ["a;b", "a", "b"] * 4
    with pytest.raises(DataError, match="several in one"):
        opened(tmp_path, labels, STRING)
    found = opened(tmp_path / "again", labels, STRING, label_separator=";")
    assert targets(found) == {(1, 1), (1, 0), (0, 1)}


@pytest.mark.parametrize(
    ("labels", "feature", "cause"),
    [
        ([0, None], WHOLE, r"row\[1\]: there is no label"),
        ([0, -1], NAMES, r"row\[1\]: label -1 has no name"),
        ([0.0, 0.5], datasets.Value("float64"), r"row\[1\]: the label is 0.5: not a class"),
        ([0.0, float("nan")], datasets.Value("float64"), r"row\[1\]: the label is nan: no label"),
        (["a", "nan"], STRING, r"row\[1\]: the label 'nan' stands for a missing value"),
        (["a", "A"], STRING, "differ only in case"),
        ([{"x": 1}, {"x": 2}], {"x": WHOLE}, "the label is a table with x"),
        ([[[1]], [[2]]], datasets.List(datasets.List(WHOLE)), r"row\[0\]: a label is a list"),
        ([[0, 0, 1], [1, 0, 0]], datasets.List(WHOLE), "lists of 0 and 1, as if for every class"),
        ([["a", None], ["b"]], datasets.List(STRING), r"row\[0\]: a label is a NoneType"),
    ],
)
def test_what_is_no_class_is_refused_by_its_row(
    tmp_path: Path, labels: list[Any], feature: Any, cause: str
) -> None:
    with pytest.raises(DataError, match=cause) as caught:
        opened(tmp_path, labels, feature)
    assert caught.value.cure


def test_names_have_an_order_unless_they_are_alphabetical(tmp_path: Path) -> None:
    assert opened(tmp_path / "a", [0, 1, 2] * 3, NAMES).ordered
    alphabetical = datasets.ClassLabel(names=["high", "low", "middle"])
    assert not opened(tmp_path / "b", [0, 1, 2] * 3, alphabetical).ordered
    stated = opened(tmp_path / "c", [0, 1, 2] * 3, alphabetical, classes=["low", "middle", "high"])
    assert stated.ordered
    assert stated.classes == ("low", "middle", "high")


def test_a_row_that_is_drawn_by_itself_is_drawn_by_its_image(tmp_path: Path) -> None:
    def trained(name: str, levels: range) -> set[int]:
        pictures = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in levels]
        features = datasets.Features({"image": datasets.Image(), "label": WHOLE})
        given = {"image": pictures, "label": [level % 2 for level in levels]}
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(given, features=features).save_to_disk(str(tmp_path / name))
        source = sources.get("huggingface")(path=tmp_path / name, size=4, channels=1)
        with drawn_singly():
            part = source.open().train
        shown = part.images.read(torch.arange(len(part)))[:, 0, 0, 0] * 255
        return set(shown.round().int().tolist())

    whole = trained("whole", range(10, 90))
    assert 0 < len(whole) < 80
    assert trained("fewer", range(11, 90)) == whole - {10}
