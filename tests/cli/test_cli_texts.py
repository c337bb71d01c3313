"""A run on texts at the command line: what is said of it, and what its model says of texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from command_line import cli, done, refused, write_config
from PIL import Image

from fedsight.data.sources.texts import TextFile
from fedsight.inference.saved import load

LENGTH = 8


def write_texts(folder: Path) -> Path:
    """A config beside its texts, in which one word tells the class; some are no texts."""
    rows = [["text", "label", "site"]]
    for i in range(60):
        label, word = [("sea", "ship"), ("land", "horse")][i % 2]
        rows.append([f"A {word} came by, in year {i}", label, "xyz"[i % 3]])
    with (folder / "letters.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([*rows, [" ... ", "sea", "x"]])
    table = {
        "data": {"name": "texts", "path": "letters.csv", "length": LENGTH, "corrupt": "skip"},
        "split": {"name": "natural"},
        "model": {"name": "text_bag", "buckets": 64, "width": 8, "hidden": 8},
        "train": {"lr": 1.0, "epochs": 2, "batch": 8},
        "rounds": {"rounds": 2},
        "speed": {"workers": 1},
    }
    path = folder / "letters.toml"
    path.write_text(tomli_w.dumps(table))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `letters.toml`, `letters.csv`, and `run`, compared."""
    folder = tmp_path_factory.mktemp("texts")
    answer = done("compare", write_texts(folder), "--out", folder / "run")
    assert "3 sites, 48 training texts and 12 test texts, 2 rounds" in answer.err
    assert "each site alone, and all texts pooled" in answer.err
    assert "image" not in answer.said
    return folder


def test_the_report_speaks_of_texts(texts: Path) -> None:
    assert json.loads((texts / "run" / "run.json").read_text())["preprocess"]["modality"] == "text"
    page = (texts / "run" / "report.html").read_text()
    assert "without sharing texts" in page
    body = page[page.index("<body>") :].replace("letters.csv", "")
    assert "images" not in body


def test_check_inspect_and_split_speak_of_texts(texts: Path) -> None:
    config = texts / "letters.toml"
    said = done("check", config).out
    assert "48 training texts and 12 test texts of 2 classes at 3 sites" in said
    said += done("data", "split", config).out
    inspected = done("data", "inspect", config).out
    for words in ("training texts", "test texts", "8 words", "1 corrupt texts"):
        assert words in inspected
    assert "image" not in said + inspected
    assert "grey" not in inspected


def test_predict_says_of_each_text_what_the_model_says(texts: Path) -> None:
    part = TextFile(path=texts / "letters.csv", length=LENGTH, corrupt="skip").open().test
    saved = load(texts / "run")
    with torch.inference_mode():
        x = saved.preprocess.normalise(part.images.read(torch.arange(len(part))))
        expected = saved.task.answers(saved.module, x, saved.classes)
    answer = cli("predict", texts / "run", texts / "letters.csv", "--json")
    assert answer.code == 3
    assert "1 of 61 texts could not be read" in answer.err
    every = json.loads(answer.out)
    by_place = {f"{one['path']}, line {one['line']}": one for one in every}
    assert len(by_place) == 61
    for at, answer in enumerate(expected):
        found = by_place[part.images.name(at)]
        assert found["label"] == answer.label
        assert found["probability"] == pytest.approx(answer.probability, abs=1e-6)
    assert every[-1] == {
        "path": str(texts / "letters.csv"),
        "line": 62,
        "error": "the text has no words",
    }


def test_predict_reads_text_files_and_rows_without_a_label(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("A horse came by,\nin year 7", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "a ship came by"}\n{"text": "a horse", "x": 1}\n')
    (tmp_path / "c.CSV").write_text("when,text\nnow,a ship came by\n")
    Image.new("L", (4, 4)).save(tmp_path / "passed-over.png")
    found = json.loads(done("predict", texts / "run", tmp_path, "--json").out)
    assert [(Path(one["path"]).name, one.get("line"), one["label"]) for one in found] == [
        *(("a.jsonl", 1, "sea"), ("a.jsonl", 2, "land")),
        *(("b.txt", None, "land"), ("c.CSV", 2, "sea")),
    ]
    table = done("predict", texts / "run", tmp_path / "a.jsonl").out
    assert "text" in table.splitlines()[1]
    assert "a.jsonl, line 2" in table


def test_texts_that_cannot_be_read_do_not_lose_the_others(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.csv").write_text("words\nx\n")
    (tmp_path / "c.txt").write_text(" - ")
    (tmp_path / "d.txt").write_text("a ship")
    answer = cli("predict", texts / "run", tmp_path, "--json")
    assert answer.code == 3
    errors = [one.get("error", "") for one in json.loads(answer.out)]
    causes = ("a.txt' is not UTF-8", "b.csv, line 1: there is no column 'text'", "has no words", "")
    assert all(cause in error for cause, error in zip(causes, errors, strict=True))
    assert errors[3] == ""
    assert "3 of 4 texts could not be read" in answer.err


def test_files_of_the_other_kind_are_refused(texts: Path, tmp_path: Path) -> None:
    picture, letter = tmp_path / "photo.png", tmp_path / "letter.txt"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    letter.write_text("a ship")
    text = refused(3, "predict", texts / "run", picture)
    assert f"the run learned from texts, but '{picture}' holds images" in text
    assert ".csv .jsonl .txt" in text
    assert "boxes cannot be drawn on texts" in refused(
        3, "predict", texts / "run", letter, "--draw", tmp_path / "drawn"
    )
    done("run", write_config(tmp_path), "--out", tmp_path / "run", "--workers", 1, "--rounds", 1)
    text = refused(3, "predict", tmp_path / "run", letter)
    assert f"the run learned from images, but '{letter}' holds texts" in text
    assert ".png" in text
    assert "photo.png" in done("predict", tmp_path / "run", tmp_path / "photo.png").out
    assert "contains no texts" in refused(3, "predict", texts / "run", tmp_path / "images")
