"""`fedsight data`: list, inspect, split."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedsight.cli.data import app
from fedsight.core.errors import ConfigError, DataError, FedSightError, StoreError
from fedsight.data.base import sources
from fedsight.data.partition import splits
from fedsight.program.locate import find_source

RUNNER = CliRunner()


def call(*arguments: str | Path) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def fails(*arguments: str | Path) -> FedSightError:
    with pytest.raises(FedSightError) as caught:
        call(*arguments)
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for index in range(10):
            path = tmp_path / "pets" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "pets"


@pytest.mark.parametrize("command", ["list", "inspect", "split"])
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: fedsight data {command}" in call(command, "--help")


def test_list_names_every_source_and_split() -> None:
    text = call("list")
    for name in [*sources.names(), *splits.names()]:
        assert name in text
    assert "MIT" in text


def test_inspect_folder(folder: Path) -> None:
    (folder / "dog" / "3.png").write_text("broken")
    arguments = ("--set", "size=8", "--set", "channels=1", "--set", "corrupt=skip")
    text = call("inspect", folder, *arguments)
    assert "8 x 8, grey" in text
    assert "skipped, corrupt: " in text
    assert "dog/3.png" in text
    assert "cat" in text


def test_split_prints_counts_and_draws(folder: Path, tmp_path: Path) -> None:
    arguments = ("split", folder, "--split", "labels", "--sites", "2", "--set", "labels=1")
    picture = tmp_path / "new" / "split.svg"
    text = call(*arguments, "--set", "data.size=8", "--picture", picture)
    assert "site-00" in text
    assert "2 sites, 8 to 8 images (median 8), 1.0 of 2 classes per site" in text
    assert picture.read_text().count("site-0") >= 2
    assert "a plot cannot be saved as '.txt'" in str(fails(*arguments, "--picture", "a.txt"))
    error = fails(*arguments, "--picture", folder / "cat" / "1.png" / "a.svg")
    assert isinstance(error, StoreError)


def test_split_of_many_sites_is_a_heat_map(tmp_path: Path) -> None:
    picture = tmp_path / "many.png"
    text = call(
        *("split", "fashion-mnist-12k", "--split", "virtual", "--sites", "100000"),
        *("--set", "samples=5", "--seed", "1", "--picture", picture),
    )
    assert "99970 more sites" in text
    assert "of the first 1000: 5 to 5 images" in text
    with Image.open(picture) as image:
        assert image.width > 500


def test_config_files_give_source_split_and_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    module: Any = types.ModuleType("fedsight.program.config")

    def load(path: Path, sets: list[str]) -> tuple[Any, None]:
        seen.append(sets)
        source = sources.get("folder")(path=folder, size=8)
        split = splits.get("iid")(sites=4)
        program = types.SimpleNamespace(data=source, split=split, seed=3, split_seed=3)
        return program, None

    module.load = load
    monkeypatch.setitem(sys.modules, "fedsight.program.config", module)
    assert "4 sites" in call("split", "a.toml", "--set", "data.size=8", "--set", "min_samples=2")
    assert "2 sites" in call("split", "a.toml", "--split", "iid", "--sites", "2")
    assert "training images" in call("inspect", "a.toml", "--set", "size=8")
    assert seen == [["data.size=8", "split.min_samples=2"], [], ["data.size=8"]]


def test_paths_tell_their_source(folder: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.npz", "a.json"):
        (tmp_path / name).touch()
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").touch()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "state.json").touch()
    expected = {
        **{"pets": "folder", "a.csv": "manifest", "a.npz": "medmnist"},
        **{"a.json": "coco", "idx": "idx", "hf": "huggingface"},
    }
    for name, source in expected.items():
        assert find_source(str(tmp_path / name), []).registered == source
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError, match="is not recognised as a data set"):
        find_source(str(tmp_path / "a.xyz"), [])


def test_wrong_words_are_answered(folder: Path) -> None:
    error = fails("inspect", "fashion-mnist-12")
    assert isinstance(error, DataError)
    assert "did you mean 'fashion-mnist-12k'?" in error.cure
    error = fails("inspect", folder, "--set", "sise=8", "--set", "channels=2")
    assert isinstance(error, ConfigError)
    assert "has no setting 'sise'" in str(error)
    assert "did you mean 'size'?" in str(error)
    assert "channels" in str(error)
    assert "not of the form" in str(fails("inspect", folder, "--set", "size"))
    assert "path: this setting is required" in str(fails("inspect", "folder"))
    assert "there is no split 'irid'" in str(fails("split", folder, "--split", "irid"))
