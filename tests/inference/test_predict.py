"""Prediction from files and folders, and the two commands that use a run."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fedsight.inference.saved as saving
from fedsight.cli.use import export_command, predict_command
from fedsight.core.errors import DataError, StoreError
from fedsight.data.base import Preprocess
from fedsight.data.passed_over import Tally
from fedsight.inference.drawing import draw_all
from fedsight.inference.inputs import find_files
from fedsight.inference.predict import Prediction, predict
from fedsight.inference.predictions_csv import BOX_COLUMNS, COLUMNS, write_csv
from fedsight.inference.saved import Saved
from fedsight.models.detector import MOST, Detector
from fedsight.tasks.classification import Classification
from fedsight.tasks.detection.task import Detection
from fedsight.tasks.presentation import Answer


class Brightness(nn.Module):
    """Dark, middle or bright: a network whose answers are known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-10 * (mean - centre) ** 2 for centre in (-2.0, 0.0, 2.0)], 1)


@pytest.fixture
def bright() -> Saved:
    preprocess = Preprocess(1, 4, 4, "stretch", (0.5,), (0.25,))
    classes = ("dark", "[middle]", "bright")
    return Saved(Brightness(), preprocess, classes, Classification(), "light", "0" * 64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "b" / "deep").mkdir(parents=True)
    Image.new("L", (9, 7), 0).save(folder / "z.png")
    Image.new("RGB", (4, 4), (255, 255, 255)).save(folder / "b" / "deep" / "a.JPG")
    Image.new("L", (4, 4), 127).save(folder / "b" / "m.bmp")
    (folder / "b" / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image either")
    return folder


def test_folders_are_searched_at_any_depth_and_sorted(images: Path) -> None:
    names = [path.relative_to(images).as_posix() for path in find_files([images], "image")]
    assert names == ["b/deep/a.JPG", "b/m.bmp", "z.png"]
    assert find_files([images / "z.png", images / "b"], "image")[0] == images / "z.png"


def test_other_files_in_folders_are_counted_beside_the_answers(
    bright: Saved,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (images / "b" / "clip.MOV").touch()
    (images / "b" / "dead.png").symlink_to("/nowhere/x.png")
    (images / "b" / "round").symlink_to(images)
    (images / "photos.zip").touch()
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes((images / "z.png").read_bytes())
    tally = Tally()
    assert len(predict(bright, [images], passed_over=tally)) == 4
    reasons = {".mov": 1, ".txt": 1, ".zip": 1, "dead links": 1, "hidden": 1}
    assert tally.counts == {**reasons, "links to a folder above": 1}
    monkeypatch.setattr(saving, "load", lambda run, site: bright)
    predict_command(images, [images], as_json=True)
    said = capsys.readouterr()
    assert "files passed over: .mov 1, .txt 1, .zip 1, dead links 1, hidden 1" in said.err
    paths = [one["path"] for one in json.loads(said.out)]
    assert os.fsdecode(b"caf\xe9.png") in [Path(one).name for one in paths]
    said.out.encode("utf-8")  # no half of a surrogate pair is printed
    (images / "notes").mkdir()
    (images / "notes" / "a.txt").touch()
    with pytest.raises(DataError, match=r"no images \(passed over: \.txt 1\)"):
        find_files([images / "notes"], "image")


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_each_image_gets_its_label_whatever_the_batch(bright: Saved, images: Path, batch) -> None:
    found = predict(bright, [images], batch)
    assert [one.answer.label for one in found if one.answer] == ["bright", "[middle]", "dark"]
    for one in found:
        assert one.error is None
        assert one.answer is not None
        probabilities = one.answer.details["probabilities"]
        assert one.answer.probability == probabilities[one.answer.label] > 0.99
        assert sum(probabilities.values()) == pytest.approx(1)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


def test_a_corrupt_image_does_not_lose_the_others(bright: Saved, images: Path) -> None:
    (images / "b" / "broken.png").write_bytes((images / "z.png").read_bytes()[:40])
    found = {one.path.name: one for one in predict(bright, [images], batch=2)}
    assert [found[name].answer.label for name in ("z.png", "a.JPG")] == ["dark", "bright"]  # type: ignore[union-attr]
    broken = found["broken.png"]
    assert broken.answer is None
    assert "broken.png" in broken.error
    assert set(broken.table()) == {"path", "error"}
    only = predict(bright, [images / "b" / "broken.png"])
    assert [one.path for one in only] == [broken.path]


def test_a_path_that_is_not_there_and_an_empty_folder_are_refused(bright, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*none.png"):
        predict(bright, [tmp_path / "none.png"])
    with pytest.raises(DataError, match="contains no images") as caught:
        predict(bright, [tmp_path])
    assert ".png" in caught.value.cure


@pytest.fixture
def run_command(bright: Saved, tmp_path: Path, monkeypatch):
    asked: list[tuple[Path, str | None]] = []

    def load(run: Path, site: str | None = None) -> Saved:
        asked.append((run, site))
        return bright

    monkeypatch.setattr(saving, "load", load, raising=False)
    app = typer.Typer()
    app.command("predict")(predict_command)
    app.command("export")(export_command)

    def run(*arguments: str | Path):
        return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "400"})

    run.asked = asked
    return run


def test_predict_prints_a_table(run_command, images: Path) -> None:
    result = run_command("predict", "runs/x", images, "--site", "north")
    assert result.exit_code == 0
    assert run_command.asked == [(Path("runs/x"), "north")]
    line = next(line for line in result.stdout.splitlines() if "m.bmp" in line)
    assert "[middle]" in line
    assert "100.0%" in line
    assert "dark" in run_command("predict", "r", images / "b" / "m.bmp", "--top", "3").stdout


def test_predict_prints_json(run_command, images: Path) -> None:
    result = run_command("predict", "runs/x", images, "--json")
    table = json.loads(result.stdout)
    assert [row["label"] for row in table] == ["bright", "[middle]", "dark"]
    assert set(table[0]) == {"path", "label", "probability", "probabilities"}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_predict_ends_with_an_error_after_all_answers(run_command, images: Path, flags) -> None:
    (images / "broken.png").write_bytes(b"no")
    result = run_command("predict", "runs/x", images, *flags)
    assert isinstance(result.exception, DataError)
    assert "1 of 4 images" in result.exception.cause
    assert "broken.png" in result.exception.cause
    assert "bright" in result.stdout
    assert "broken.png" in result.stdout


def test_export_writes_beside_the_run_or_where_it_is_told(run_command, bright, tmp_path) -> None:
    result = run_command("export", tmp_path, "--format", "torchscript")
    assert (tmp_path / "export.pt").is_file()
    assert "export.pt" in result.stdout
    run_command("export", tmp_path, "--format", "torchscript", "--out", tmp_path / "x.pt")
    assert (tmp_path / "x.pt").is_file()
    own = tmp_path / "model.safetensors"
    result = run_command("export", tmp_path, "--format", "safetensors", "--out", own)
    assert isinstance(result.exception, StoreError)
    assert not own.exists()
    assert run_command("export", tmp_path, "--format", "jpeg").exit_code == 2


def test_both_commands_show_an_example(run_command) -> None:
    for command in ("predict", "export"):
        assert f"Example: fedsight {command}" in run_command(command, "--help").stdout


class Finder(Detector):
    """One object over the whole of a bright image: a detector whose answers are known."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 1

    def loss(self, x: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nobody trains here")

    def find(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(x), MOST, 6)
        found[:, 0] = torch.tensor([0, 0.9, 1.0, 1.0, 3.0, 3.0])
        found[:, 0, 1] *= x.mean((1, 2, 3)) > 1
        return found


def test_boxes_are_told_in_pixels_of_the_file_and_drawn(images: Path, tmp_path: Path) -> None:
    preprocess = Preprocess(1, 4, 4, "stretch", (0.5,), (0.25,))
    saved = Saved(Finder(), preprocess, ("lamp",), Detection(), "light", "0" * 64)
    Image.new("RGB", (400, 200), (255, 255, 255)).save(images / "wide.png")
    Image.new("L", (400, 200), 255).save(images / "b" / "wide.png")
    found = predict(saved, [images / "wide.png", images / "b" / "wide.png", images / "z.png"])
    assert [one.table()["label"] for one in found] == ["lamp", "lamp", "nothing"]
    (box,) = found[0].table()["boxes"]
    assert box["box"] == [100, 50, 300, 150]
    assert box["score"] == pytest.approx(0.9)
    assert found[2].table()["boxes"] == []
    written = draw_all(found, tmp_path / "drawn", preprocess)
    assert [path.name for path in written] == ["wide.png", "wide-2.png", "z.png"]
    with Image.open(written[0]) as drawn, Image.open(images / "wide.png") as plain:
        changed = np.argwhere((np.asarray(drawn) != np.asarray(plain)).any(2))
        assert drawn.size == plain.size
        assert changed.max(0).tolist() == [150, 300]
    with pytest.raises(StoreError, match="one of the images"):
        draw_all(found, images, preprocess)


def test_answers_below_the_confidence_are_unsure(bright: Saved, images: Path) -> None:
    for one in predict(bright, [images], confidence=0.9):
        assert one.probability is not None
        assert one.sure is (one.probability >= 0.9)
        assert one.table()["sure"] is one.sure
    assert all("sure" not in one.table() for one in predict(bright, [images]))
    with pytest.raises(DataError, match="not from 0 to 1"):
        predict(bright, [images], confidence=1.5)


def test_a_predictions_csv_holds_no_formula(bright: Saved, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 4), 255).save("=HYPERLINK(1).png")
    Image.new("L", (4, 4), 0).save("-a,b.png")
    Path("@broken.png").write_text("not an image")
    named = Saved(bright.module, bright.preprocess, ("=dark", "+m", "ok"), bright.task, "l", "0")
    files = [Path("=HYPERLINK(1).png"), Path("-a,b.png"), Path("@broken.png")]
    write_csv(predict(named, files, confidence=0.5), False, tmp_path / "deep" / "p.csv")
    with (tmp_path / "deep" / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == ["'=HYPERLINK(1).png", "'-a,b.png", "'@broken.png"]
    assert [row["label"] for row in rows] == ["ok", "'=dark", ""]
    assert [row["sure"] for row in rows] == ["yes", "yes", ""]
    assert float(rows[0]["probability"]) > 0.5
    assert rows[2]["error"]


def test_a_predictions_csv_has_what_the_run_knows_of_its_answers(tmp_path: Path) -> None:
    known = {"calibrated": 0.5, "unlike": True, "classes": ("a;b", "c")}
    found = [
        Prediction(Path("one.png"), Answer("c", 0.75, {}), **known),
        Prediction(Path("two.png"), Answer("c", 0.75, {}), classes=(), unlike=False),
        Prediction(Path("three.png"), Answer("c", 0.75, {})),
    ]
    write_csv(found, False, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["calibrated"], row["unlike"], row["set"]) for row in rows] == [
        ("0.5", "yes", '["a;b", "c"]'),
        ("", "no", "[]"),
        ("", "", ""),
    ]


def test_a_csv_of_boxes_has_a_row_for_each(tmp_path: Path) -> None:
    box = {"label": "cat", "score": 0.75, "box": [-1.5, 2.0, 3.0, 4.0]}
    found = [
        Prediction(Path("two.png"), Answer("2 cat", 0.75, {"boxes": [box, box]})),
        Prediction(Path("none.png"), Answer("nothing", 0.0, {"boxes": []})),
        Prediction(Path("bad.png"), error="cannot be read"),
    ]
    write_csv(found, True, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == BOX_COLUMNS
    assert [(row["path"], row["label"], row["left"]) for row in rows] == [
        ("two.png", "cat", "-1.5"),
        ("two.png", "cat", "-1.5"),
        ("none.png", "", ""),
        ("bad.png", "", ""),
    ]
    assert rows[3]["error"] == "cannot be read"
