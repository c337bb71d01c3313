"""Images of patients at several sites: some show a patient once, some a few times, in any class."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from masked_counts import CLASSES, TESTS
from PIL import Image

PATTERN = "{group}_*"
PATIENTS = {"east": 40, "north": 48, "south": 44, "west": 52}  # in the test part
assert PATIENTS.keys() == TESTS.keys()


def draw_patients(root: Path, patients: Mapping[str, int] = PATIENTS, trained: int = 3) -> Path:
    """The images of all sites, each in a folder of its own, and all in one tree; of a patient one
    to four, that resemble one another."""
    for site, count in patients.items():
        for part, people in (("train", trained * len(CLASSES)), ("test", count)):
            for label in range(len(CLASSES)):  # no class is empty
                (root / site / part / CLASSES[label]).mkdir(parents=True)
            for person in range(people):
                _draw_one(root / site / part, f"{site}-{part}-{person}", person)
        for part in ("train", "test"):
            (root / "all" / part).mkdir(parents=True, exist_ok=True)
            (root / "all" / part / site).symlink_to(root / site / part)
    return root


def _draw_one(folder: Path, patient: str, number: int) -> None:
    rng = np.random.default_rng(zlib.crc32(patient.encode()))
    alike = rng.integers(0, 120, (8, 8))
    for image in range(1 + number % 4):
        label = (number + image // 2) % len(CLASSES)
        pixels = alike + rng.integers(0, 40, (8, 8)) + 40 * label
        name = f"{patient}_{image}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / CLASSES[label] / name)
