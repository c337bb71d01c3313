"""The split that a table states: read under its usual names, and never passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fedsight.core.errors import DataError
from fedsight.data.base import Dataset, sources

WORDS = ["train"] * 5 + ["val", "dev", "Test", "TEST"]


def table(root: Path, column: str, words: list[str], name: str = "all.csv") -> Path:
    rows = [f"path,label,{column}"]
    for number, word in enumerate(words):
        Image.new("L", (6, 6), 9 * number).save(root / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},{word}")
    path = root / name
    path.write_text("\n".join(rows) + "\n")
    return path


def opened(path: Path, **options: str) -> Dataset:
    return sources.get("manifest")(path=path, size=6, channels=1, **options).open()


@pytest.mark.parametrize("column", ["split", "Split", " SPLIT"])
def test_a_split_column_says_three_parts(tmp_path: Path, column: str) -> None:
    found = opened(table(tmp_path, column, WORDS))
    assert found.validation is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (5, 2, 2)


@pytest.mark.parametrize("column", ["subset", "Usage", "fold", "partition"])
def test_a_split_under_another_name_is_not_redrawn(tmp_path: Path, column: str) -> None:
    path = table(tmp_path, column, WORDS)
    with pytest.raises(DataError, match=f"line 1: column '{column}' says the parts") as caught:
        opened(path)
    assert f'data.split_column = "{column}"' in caught.value.cure
    assert len(opened(path, split_column=column).test) == 2
    assert len(opened(table(tmp_path, column, ["x", "y"] * 5)).test) == 2


def test_a_misspelt_part_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all\.csv, line 4: 'split' is 'vla'") as caught:
        opened(table(tmp_path, "split", ["train", "test", "vla"]))
    assert "did you mean 'val'?" in caught.value.cure


def test_a_test_file_beside_is_told(tmp_path: Path) -> None:
    table(tmp_path, "x", WORDS, "test.csv")
    found = opened(table(tmp_path, "x", ["1"] * 9, "train.csv"))
    assert "'test.csv' beside 'train.csv'" in found.notes[0]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_texts_have_their_split_too(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"word {n}", "label": "ab"[n % 2], "Split": w} for n, w in enumerate(WORDS)]

    def write(name: str) -> Dataset:
        path = tmp_path / f"all{suffix}"
        lines = [",".join(("text", "label", name)), *(",".join(row.values()) for row in rows)]
        if suffix == ".jsonl":
            lines = [
                json.dumps({"text": r["text"], "label": r["label"], name: r["Split"]}) for r in rows
            ]
        path.write_text("\n".join(lines) + "\n")
        return sources.get("texts")(path=path).open()

    found = write("Split")
    assert found.validation is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (5, 2, 2)
    with pytest.raises(DataError, match="column 'subset' says the parts"):
        write("subset")
