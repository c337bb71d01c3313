"""Bad input, end to end: one clear message with the culprit and a cure, the documented exit code,
and the last checkpoint whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import (
    Launched,
    check_message,
    cli,
    done,
    history,
    lines,
    read,
    refused,
    same,
    write_config,
    write_images,
)
from PIL import Image

from fedsight.coordinator.store import RunStore


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("input")


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    done("run", write_config(home), "--out", home / "finished", "--workers", 1)
    return home / "finished"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A config beside folders of images: site/class/image."""
    rng = np.random.default_rng(0)
    for site in ("north", "south"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / site / name
            folder.mkdir(parents=True)
            for index in range(8):
                pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    data = {"name": "folder", "path": "pets", "size": 8, "channels": 1, "sites_in_path": True}
    return write_config(tmp_path, "pets", data=data, split={"name": "natural"})


# ---------------------------------------------------------------- before anything is begun


@pytest.mark.parametrize("command", ["run", "compare", "check"])
def test_wrong_keys_and_types(tmp_path: Path, command: str) -> None:
    config = write_config(tmp_path, train={"lrr": 1, "epochs": "two"}, sede=1)
    text = refused(2, command, config)
    assert "3 problems" in text
    assert "train.lrr: there is no such setting" in text
    assert "did you mean 'lr'?" in text
    assert "train.epochs: 'two' does not fit" in text
    assert "did you mean 'seed'?" in text
    assert not (tmp_path / "runs").exists()


def test_unsound_programs(tmp_path: Path) -> None:
    config = write_config(tmp_path, algorithm={"name": "scaffold"}, train={"momentum": 0.5})
    text = refused(2, "check", config, "--set", "rounds.cohort=4")
    assert "2 problems" in text
    assert "rounds.cohort: a cohort of 4 cannot be drawn from 3 sites" in text
    assert "lower rounds.cohort to 3 or fewer" in text
    assert "train.momentum" in text


def test_missing_files(tmp_path: Path) -> None:
    assert "there is no config file" in refused(2, "run", tmp_path / "none.toml")
    config = write_config(tmp_path)
    shutil.rmtree(tmp_path / "images")
    text = refused(2, "run", config)
    assert f"data.path: '{tmp_path}/images' does not exist" in text
    (tmp_path / "images").mkdir()
    assert "train-images-idx3-ubyte' does not exist" in refused(3, "run", config)


def test_a_corrupt_image(pets: Path, tmp_path: Path) -> None:
    broken = tmp_path / "pets" / "north" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    for command in ("check", "run"):
        assert str(broken) in refused(3, command, pets)
    done("run", pets, "--set", "data.corrupt=skip", "--out", tmp_path / "run", "--workers", 1)
    assert read(tmp_path / "run", "run.json")["data"]["skipped"] == [str(broken)]


def test_a_class_that_nobody_holds(pets: Path, tmp_path: Path) -> None:
    text = refused(3, "run", pets, "--set", 'data.classes=["cat", "dog", "eel"]')
    assert "class 'eel' has no training images" in text
    text = refused(3, "run", pets, "--set", 'data.classes=["cat", "fog"]')
    assert "label 'dog' is not in data.classes" in text
    (tmp_path / "pets" / "west").mkdir()
    assert "site 'west' has no images" in refused(3, "run", pets)


def test_a_population_that_only_the_images_tell(pets: Path) -> None:
    text = refused(2, "run", pets, "--set", "rounds.cohort=3")
    assert "a cohort of 3 cannot be drawn from 2 sites" in text
    text = refused(2, "run", pets, "--set", "rounds.quorum=3")
    assert "rounds.quorum: a cohort of 2 cannot give 3 good replies" in text


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    text = refused(4, "run", write_config(tmp_path, model={"blocks": 5}))
    assert "small_cnn" in text
    assert "data.size" in text
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_not_ones_own(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "is not empty and not a run" in refused(7, "run", config, "--out", tmp_path / "mine")
    file = tmp_path / "mine" / "letter.txt"
    assert "cannot create the folder" in refused(7, "run", config, "--out", file)
    assert "cannot create the folder" in refused(7, "run", config, "--out", file / "run")
    assert file.read_text() == "dear"


# ---------------------------------------------------------------- run folders


@pytest.mark.parametrize(
    "words", [["resume"], ["report"], ["predict", "."], ["export", "--format", "safetensors"]]
)
@pytest.mark.parametrize("kind", ["missing", "empty", "stranger"])
def test_what_is_no_run_folder(tmp_path: Path, words: list[str], kind: str) -> None:
    run = tmp_path / "the run"
    if kind != "missing":
        run.mkdir()
    if kind == "stranger":
        (run / "holiday.txt").write_text("sun")
    command, *rest = words
    assert "the run" in refused(7, command, run, *rest)
    assert not list(run.glob("*")) or kind == "stranger"


@pytest.mark.parametrize(
    ("name", "content", "code", "culprit"),
    [
        ("run.toml", "[data", 2, "run.toml, line 1: '[data' is not TOML"),
        ("run.toml", None, 7, "is not a run folder"),
        ("run.json", "{", 7, "run.json"),
        ("run.json", None, 7, "run.json"),
        ("run.json", "{}", 7, "run.toml is not the program"),
        ("checkpoint.safetensors", "torn", 7, "checkpoint.safetensors is broken"),
        ("history.jsonl", "{\n{}\n", 7, "history.jsonl is broken"),
    ],
)
def test_resume_of_a_broken_run(
    finished: Path, tmp_path: Path, name: str, content: str | None, code: int, culprit: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    assert culprit in refused(code, "resume", run)


def test_predict_with_bad_images(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.new("L", (8, 8), 99).save(tmp_path / "b.png")
    answer = cli("predict", finished, tmp_path)
    assert answer.code == 3
    check_message(answer.err)
    assert "1 of 2 images could not be read" in answer.err
    assert "a.png" in answer.err
    assert "b.png" in answer.out
    assert "no file or folder" in refused(3, "predict", finished, tmp_path / "none.png")
    assert "share one model" in refused(7, "predict", finished, tmp_path / "b.png", "--site", "x")


# ---------------------------------------------------------------- while it trains


def test_a_site_whose_training_diverges(tmp_path: Path) -> None:
    config = write_config(tmp_path, train={"lr": 1e30}, rounds={"rounds": 5})
    run = tmp_path / "run"
    text = refused(5, "run", config, "--out", run, "--workers", 2)
    assert "round 1 has 0 good replies of 3, and needs all" in text
    assert "site 'site-0" in text
    assert "rounds.quorum" in text
    text = refused(5, "run", config, "--set", "rounds.quorum=1", "--out", tmp_path / "one")
    assert "round 1 has 0 good replies of 3, and needs 1" in text
    assert "site-0" in text


def test_a_site_that_diverges_late_leaves_the_checkpoint_and_the_others(
    tmp_path: Path, monkeypatch
) -> None:
    """The images of one site turn to NaN in round 3; the sum never sees its update."""
    from fedsight.engines.in_process import InProcessEngine, LocalWorker
    from fedsight.runs import machines

    original = LocalWorker.train

    def train(self: Any, order: Any, client: int, total: Any, counted: Any = None) -> Any:
        if order.round >= 3 and client == 1:
            with torch.no_grad():
                order = type(order)(order.round, order.vector * float("nan"), order.shared)
        return original(self, order, client, total, counted)

    import torch

    monkeypatch.setattr(LocalWorker, "train", train)
    monkeypatch.setattr(
        machines,
        "WorkerEngine",
        lambda federation, speed, memory: InProcessEngine(federation, memory, speed),
    )
    config = write_config(tmp_path, rounds={"rounds": 4})
    run = tmp_path / "stop"
    text = refused(5, "run", config, "--out", run)
    assert "round 3 has 2 good replies of 3, and needs all; the first rejected: the" in text
    assert "training loss of site 'site-01' is not finite" in text
    assert lines(run) == 2
    found = RunStore(run).load_checkpoint()
    assert found is not None
    assert found.round == 2
    assert bool(torch.isfinite(found.vector).all())

    skip = tmp_path / "skip"
    done("run", config, "--set", "rounds.quorum=2", "--out", skip)
    replies = [(line["replies"], list(line["rejected"])) for line in history(skip)]
    assert replies == [(3, []), (3, []), (2, ["site-01"]), (2, ["site-01"])]

    monkeypatch.undo()
    done("resume", run, "--workers", 1)  # the images were mended
    done("run", config, "--out", tmp_path / "whole", "--workers", 1)
    same(run, tmp_path / "whole")


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch, algorithm: str) -> None:
    config = write_config(tmp_path, rounds={"rounds": 5}, algorithm={"name": algorithm})
    run = tmp_path / "run"
    original, calls = RunStore.save_checkpoint, []

    def save(self: RunStore, checkpoint: Any) -> None:
        calls.append(checkpoint.round)
        if checkpoint.round == 3:
            monkeypatch.setattr(os, "fsync", full)
        original(self, checkpoint)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunStore, "save_checkpoint", save)
    text = refused(7, "run", config, "--out", run, "--workers", 2)
    assert "cannot write" in text
    assert "checkpoint.safetensors: No space left on device" in text
    assert "fedsight resume" in text
    monkeypatch.undo()
    found = RunStore(run).load_checkpoint()
    assert found is not None
    assert found.round == 2
    done("resume", run, "--workers", 2)
    done("run", config, "--out", tmp_path / "whole", "--workers", 1)
    same(run, tmp_path / "whole")
    assert calls == [1, 2, 3]


def test_a_file_system_that_takes_no_more(tmp_path: Path) -> None:
    write_images(tmp_path / "images", train=100, test=40)
    config = write_config(tmp_path, rounds={"rounds": 40})
    run = tmp_path / "run"
    launched = Launched(tmp_path, "run", config, "--out", run, "--workers", 1, limit=7_000)
    launched.process.join()
    said = launched.said.read_text()
    assert launched.process.exitcode == 7, said
    check_message(said)
    assert "history.jsonl: File too large" in said
    found = RunStore(run).load_checkpoint()
    assert found is not None
    assert 1 < found.round == lines(run) < 40
    text = (run / "history.jsonl").read_text()
    assert len(text) == 7_000, "the last line is torn, unless the limit fell on its end"
    done("resume", run, "--workers", 2)
    assert [line["round"] for line in history(run)] == list(range(1, 41))


def test_a_system_without_shared_memory(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "ftruncate", full)
    text = refused(6, "run", write_config(tmp_path), "--out", tmp_path / "run", "--workers", 1)
    assert "bytes of shared memory: Cannot allocate memory" in text
    assert "speed.workers" in text


def test_a_place_without_permission(tmp_path: Path, monkeypatch) -> None:
    config = write_config(tmp_path)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    text = refused(7, "run", config, "--out", tmp_path / "run")
    assert f"cannot create the folder {tmp_path}/run: Permission denied" in text


def when_written(name: str, error: type[BaseException]) -> Callable[..., None]:
    """In the place of `RunStore.write_json`: raises when the file `name` is to be written."""
    write = RunStore.write_json

    def stand_in(store: RunStore, file: str, *rest: Any) -> None:
        if file == name:
            raise error
        write(store, file, *rest)

    return stand_in


@pytest.mark.parametrize("name", ["evaluation.json", "summary.json"])
def test_ctrl_c_after_the_last_round(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(RunStore, "write_json", when_written(name, KeyboardInterrupt))
    config = write_config(tmp_path)
    text = refused(130, "run", config, "--out", tmp_path / "run", "--workers", 1)
    assert f"fedsight resume {tmp_path}/run" in text
    monkeypatch.undo()
    done("resume", tmp_path / "run", "--workers", 1)
    assert read(tmp_path / "run")["rounds"] == 2


def test_a_defect_is_not_dressed_up_as_a_mistake_of_the_user(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(RunStore, "write_json", when_written("summary.json", ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        cli("run", write_config(tmp_path), "--out", tmp_path / "run", "--workers", 1)
