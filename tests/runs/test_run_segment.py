"""A federation that learns masks. The images are composed shapes in noise, and no real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from command_line import done, read, refused, write_config
from PIL import Image

SIDE = 16
CLASSES = ["background", "disc", "square"]


def compose(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark disc and a bright square at random places, as the mask says, in noise."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    y, x = rng.integers(3, SIDE - 3, 2)
    mask[(rows - y) ** 2 + (columns - x) ** 2 <= 9] = 1
    y, x = rng.integers(0, SIDE - 5, 2)
    mask[y : y + 5, x : x + 5] = 2
    image = np.array([120, 50, 200])[mask] + rng.integers(-40, 40, mask.shape)
    return image.astype(np.uint8), mask


def write(root: Path, count: int = 48) -> None:
    rng = np.random.default_rng(2)
    lines = ["path,mask,site,split"]
    for number in range(count):
        image, mask = compose(rng)
        Image.fromarray(image).save(root / f"{number}.png")
        Image.fromarray(mask).save(root / f"{number}_mask.png")
        part = "test" if number % 4 == 3 else "train"
        lines.append(f"{number}.png,{number}_mask.png,{'ab'[number % 2]},{part}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")


def test_masks_are_learnt_across_sites(tmp_path: Path) -> None:
    write(tmp_path)
    sections = {
        "data": {
            "name": "masks",
            "path": "list.csv",
            "classes": CLASSES,
            "size": SIDE,
            "channels": 1,
        },
        "split": {"name": "natural"},
        "task": {"name": "segment"},
        "model": {"name": "unet", "width": 4, "levels": 2},
        "train": {"epochs": 3, "batch": 6, "lr": 0.3},
        "rounds": {"rounds": 4},
    }
    config = write_config(tmp_path, "masks", **sections)
    run = tmp_path / "run"
    done("run", config, "--workers", "1", "--out", run)
    summary = read(run)
    assert summary["score"] == summary["dice"] > 0.6
    assert 0 < summary["iou"] < summary["dice"]
    rows = read(run, "evaluation.json")["tables"][0]["rows"]
    assert [row[0] for row in rows] == CLASSES
    assert "Mean Dice" in (run / "report.html").read_text()
    told = json.loads(done("predict", run, tmp_path / "3.png", "--json").out)[0]
    assert sum(told["shares"].values()) > 0.999
    plain = {**sections, "model": {"name": "small_cnn", "width": 4}}
    message = refused(2, "run", write_config(tmp_path, "plain", **plain), "--out", tmp_path / "no")
    assert "needs a network that gives masks" in message
    flipped = {**sections, "train": {"epochs": 1, "augment": ["flip"]}}
    message = refused(2, "run", write_config(tmp_path, "flip", **flipped), "--out", tmp_path / "no")
    assert "not its targets" in message
