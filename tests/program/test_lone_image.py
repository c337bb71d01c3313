"""BatchNorm and a batch of one image: said before the training, not by a crash in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import cli, done, refused
from PIL import Image

from fedsight.runs.functions import check


def config(tmp_path: Path, tiny: int, model: str, rest: str = "") -> Path:
    rng = np.random.default_rng(0)
    rows = ["path,label,site,split"]
    for site, count in (("big", 6), ("tiny", tiny), ("test", 4)):
        for number in range(count):
            name = f"{site}{number}.png"
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / name)
            owner, part = ("big", "test") if site == "test" else (site, "train")
            rows.append(f"{name},{'ab'[number % 2]},{owner},{part}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    path = tmp_path / "c.toml"
    path.write_text(
        '[data]\nname="manifest"\npath="all.csv"\nsize=32\n[split]\nname="natural"\n'
        f"[rounds]\nrounds=1\n[model]\n{model}\n[train]\nbatch=4\n{rest}"
    )
    return path


RESNET = 'name="torchvision"\narchitecture="shufflenet_v2_x0_5"\n'


def test_a_site_with_one_image_is_named_with_the_cure(tmp_path: Path) -> None:
    path = config(tmp_path, 1, f'{RESNET}norm="batch"')
    for command in ("check", "run"):
        said = refused(2, command, path)
        assert "site 'tiny' has a single training image" in said
        assert "model.norm = 'group'" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tiny", "model"),
    [
        (2, f'{RESNET}norm="batch"'),
        (1, f'{RESNET}norm="group"'),
        (1, 'name="small_cnn"\nnorm="batch"'),
    ],
)
def test_what_can_train_is_not_refused(tmp_path: Path, tiny: int, model: str) -> None:
    done("run", config(tmp_path, tiny, model), "--workers", 1, "--out", tmp_path / "run")


def test_batches_of_one(tmp_path: Path) -> None:
    path = config(tmp_path, 2, f'{RESNET}norm="batch"')
    found: list[Any] = check(path, train={"batch": 1})
    assert [problem.where for problem in found] == ["model.norm"]
    assert "train.batch is 1" in found[0].cause
    assert cli("check", path).code == 0
