"""Sources and programs that stand on a fetched data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedsight.core.errors import ConfigError, DataError
from fedsight.data.fetch.packages import find
from fedsight.data.sources.fashion_mnist import FashionMnist
from fedsight.program import config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIGHT_CACHE", str(tmp_path))
    return tmp_path


def write_idx(path: Path, array: np.ndarray) -> None:
    shape = b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes())


def test_a_program_asks_for_its_data_set(home: Path) -> None:
    program, speed = config.parse({"data": {"name": "fashion-mnist"}}, home)
    assert program.needs() == ("fashion-mnist",)
    with pytest.raises(ConfigError) as caught:
        config.check(program, speed)
    [problem] = caught.value.problems
    assert (problem.where, problem.cure) == ("data.name", "run: fedsight data get fashion-mnist")
    config.check_elsewhere(program, speed)  # it lies at the sites
    with pytest.raises(DataError, match="is not in"):
        program.data.open()


def test_fashion_mnist_is_read_from_the_cache(home: Path) -> None:
    folder = home / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    receipt = {"sha256": find("fashion-mnist").sha256, "files": {}}
    (folder / ".fetched").write_text(json.dumps(receipt))
    opened = FashionMnist().open()
    assert (len(opened.train), len(opened.test)) == (20, 10)
    assert opened.classes[9] == "Ankle boot"
    assert opened.facts["licence"] == "MIT"
    assert opened.preprocess.mean == (0.286,)
