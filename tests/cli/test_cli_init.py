"""`fedsight init`: from a folder of one's own images to the report."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import own_folders
import pytest
from command_line import done, read, refused
from typer.testing import CliRunner

from fedsight.cli import init
from fedsight.cli.app import app

SMALL = ("--rounds", 1, "--workers", 1, "--set", "train.epochs=1")
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "classify": own_folders.class_folders,
    "sites": lambda root: own_folders.class_folders(root, ("lyon", "oslo")),
    "segment": own_folders.masks,
    "detect": own_folders.yolo,
    "multilabel": lambda root: own_folders.table(root, ("a", "b", "a|b", "")),
    "faces": lambda root: own_folders.people(root, [f"s{n}" for n in range(8)]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_own_images_becomes_a_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    LAYOUTS[name](tmp_path / name)
    said = done("init", name, "--yes").out
    assert f"Next: fedsight run {name}.toml" in said
    assert "is fine" in done("check", f"{name}.toml").out
    done("run", f"{name}.toml", *SMALL)
    assert "</html>" in (tmp_path / "runs" / name / "report.html").read_text()
    assert read(tmp_path / "runs" / name)["score"] is not None


def test_the_config_explains_itself_and_can_be_moved_with_its_images(tmp_path: Path) -> None:
    own_folders.class_folders(tmp_path / "a b" / "my images")
    out = tmp_path / "a b" / "config.toml"
    done("init", tmp_path / "a b" / "my images", "--yes", "--out", out)
    text = out.read_text()
    assert tomllib.loads(text)["data"]["path"] == "my images"
    assert "# passes over a site's images" in text
    (tmp_path / "a b").rename(tmp_path / "moved")
    assert "is fine" in done("check", tmp_path / "moved" / "config.toml").out


def test_no_file_is_overwritten_without_asking(tmp_path: Path) -> None:
    images, out = own_folders.class_folders(tmp_path / "mine"), tmp_path / "mine.toml"
    out.write_text("mine = 1\n")
    assert "--force" in refused(7, "init", images, "--out", out, "--yes")
    assert out.read_text() == "mine = 1\n"
    done("init", images, "--out", out, "--yes", "--force")
    assert tomllib.loads(out.read_text())["name"] == "mine"
    refused(7, "init", images, "--yes", "--out", tmp_path / "mine.txt")


def test_a_wrong_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    masks = own_folders.masks(tmp_path / "mine", (0, 1))
    (masks / "images/0.png").write_bytes(b"no image")
    out = tmp_path / "mine.toml"
    assert "0.png" in refused(3, "init", masks, "--out", out, "--yes")
    assert "does not exist" in refused(3, "init", tmp_path / "none", "--out", out, "--yes")
    assert "did you mean 'segment'?" in refused(2, "init", masks, "--task", "segmnt", "--yes")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_images_that_cannot_be_read_are_said_and_left_out(tmp_path: Path) -> None:
    images = own_folders.class_folders(tmp_path / "mine")
    (images / "cat" / "0.png").write_bytes(b"no image")
    out = tmp_path / "mine.toml"
    (images / "dog" / "notes.txt").write_text("not an image")
    said = done("init", images, "--out", out, "--yes").out
    assert "passed over: .txt 1" in said
    assert f"cannot be read, left out: {images / 'cat' / '0.png'}" in said
    assert tomllib.loads(out.read_text())["data"]["corrupt"] == "skip"
    assert "is fine" in done("check", out).out


def test_on_a_terminal_each_guess_is_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner's input is no terminal, so the test says that it is one."""
    monkeypatch.setattr(init, "on_terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    own_folders.table(tmp_path / "mine", ("low", "medium", "high"))
    answers = "ordinal\nlow,medium,high\n24\n3\n"
    result = CliRunner().invoke(app, ["init", "mine"], input=answers)
    assert result.exit_code == 0, result.output
    made = tomllib.loads((tmp_path / "mine.toml").read_text())
    assert made["task"]["name"] == "ordinal"
    assert made["data"]["classes"] == ["low", "medium", "high"]
    assert (made["data"]["size"], made["split"]["sites"]) == (24, 3)
    kept = CliRunner().invoke(app, ["init", "mine"], input="n\n")
    assert kept.exit_code != 0
    again = CliRunner().invoke(app, ["init", "mine"], input="y\n\n\n\n")
    assert again.exit_code == 0, again.output
    assert tomllib.loads((tmp_path / "mine.toml").read_text())["task"]["name"] == "classify"
