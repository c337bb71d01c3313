"""A run remembers what its images were: by pieces or by every byte, each time hashed once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import done, read, refused
from PIL import Image

from fedsight.coordinator.store import RunStore
from fedsight.core.progress import listening
from fedsight.data.contents import PIECE
from fedsight.runs import lifecycle
from fedsight.runs.extension import Extension

CONFIG = """
[data]
name = "folder"
path = "images"
size = 16
in_memory = false
[split]
sites = 2
[train]
batch = 4
[rounds]
rounds = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)).save(path)
    (tmp_path / "mine.toml").write_text(CONFIG)
    return tmp_path / "mine.toml"


def train(config: Path, *more: str) -> Path:
    run = config.parent / "run"
    done("run", config, "--workers", 1, "--out", run, *more)
    return run


@pytest.mark.parametrize("how", ["pieces", "whole"])
def test_a_byte_between_the_pieces_is_seen_if_files_are_hashed_whole(
    config: Path, how: str
) -> None:
    run = train(config, "--set", f"speed.hash={how}")
    assert read(run, "run.json")["data"]["hashed"] == how
    for path in (config.parent / "images").rglob("*.bmp"):
        data = bytearray(path.read_bytes())
        data[2 * PIECE] ^= 1
        path.write_bytes(data)
    words = ("resume", run, "--rounds", 2, "--workers", 1)
    if how == "pieces":
        done(*words)
    else:
        assert "the test images and the training images of" in refused(7, *words)


def test_how_files_are_hashed_stays_as_the_run_began(config: Path) -> None:
    run = train(config, "--set", "speed.hash=whole")
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace('hash = "whole"', 'hash = "pieces"'))
    done("resume", run, "--rounds", 2, "--workers", 1)
    assert read(run, "run.json")["data"]["hashed"] == "whole"


def test_an_extended_run_hashes_each_file_once(config: Path) -> None:
    run = train(config)
    heard: Counter[str] = Counter()
    with listening(lambda phase, done, total: heard.update([phase])):
        lifecycle.resume(RunStore(run), 1, [], Extension(2))
    assert heard["files hashed"] == 12
