"""Images with masks: what is read, and what is refused by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pytest
from PIL import Image

from fedsight.core.errors import DataError

CLASSES = ["background", "disc", "square"]


def write(root: Path, masks: list[np.ndarray], split: bool = True) -> Path:
    """A CSV and its files; the last image is the test part."""
    lines = ["path,mask,split" if split else "path,mask"]
    for number, mask in enumerate(masks):
        Image.fromarray((mask * 20).astype(np.uint8)).save(root / f"image{number}.png")
        Image.fromarray(mask).save(root / f"mask{number}.png")
        part = "test" if number == len(masks) - 1 else "train"
        lines.append(f"image{number}.png,mask{number}.png" + (f",{part}" if split else ""))
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


opened = partial(opened_sources.opened, "masks", classes=CLASSES, channels=1)


def mask(square: int, size: int = 8) -> np.ndarray:
    values = np.zeros((size, size), np.uint8)
    values[:square, :square] = 2
    values[-1, -1] = 1
    values[0, -1] = 255
    return values


def test_masks_become_targets(tmp_path: Path) -> None:
    masks = [mask(0), mask(3), np.zeros((8, 8), np.uint8), mask(4)]
    found = opened(write(tmp_path, masks), size=8)
    assert found.train.targets is not None
    assert found.test.targets is not None
    assert np.array_equal(found.train.targets.numpy(), np.stack(masks[:3]))
    assert np.array_equal(found.test.targets.numpy(), masks[3][None])
    assert found.train.labels.tolist() == [1, 2, 0]  # the most frequent but the background
    large = opened(tmp_path / "list.csv", size=16)
    assert large.train.targets is not None
    assert np.array_equal(large.train.targets[1].numpy(), masks[1].repeat(2, 0).repeat(2, 1))


def test_an_image_counts_for_each_class_that_it_shows(tmp_path: Path) -> None:
    found = opened(write(tmp_path, [mask(0), mask(3), np.zeros((8, 8), np.uint8), mask(4)]), size=8)
    assert found.train.counts(3).tolist() == [3, 2, 1]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [mask(3), mask(3), mask(2)])
    cases: list[tuple[Any, str]] = [
        (
            np.full((8, 8), 7, np.uint8),
            "not class numbers (0 to 2, or 255 for no label): 7 in 64 pixels",
        ),
        (np.full((8, 8, 3), (0, 9, 0), np.uint8), "is in colour (#000900 in 64 pixels)"),
        (np.full((8, 8), 999, np.uint16), "has 16 bits or more per pixel (values 999 to 999)"),
        (mask(2)[:4], "has 8 x 4 pixels, but its image has 8 x 8"),
        (b"junk", "mask1.png' is corrupt"),
        (None, "line 3: there is no mask"),
    ]
    for content, cause in cases:
        file = tmp_path / "mask1.png"
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(file)
        elif content is not None:
            file.write_bytes(content)
        else:
            file.unlink()
        with pytest.raises(DataError) as caught:
            opened(path, size=8)
        assert cause in caught.value.cause
        assert "mask1.png" in caught.value.cause
        assert caught.value.cure
