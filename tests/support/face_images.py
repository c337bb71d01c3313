"""Pictures of people who do not exist: a smooth pattern each, with noise; and a program on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedsight.data.sources.people import People
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate

SIDE = 16
NAMES = ("Adalovelace", "Bobadilla", "Cleopatra", "Dandelion", "Evangelina", "Fayetteville")


def picture(person: int, number: int) -> Image.Image:
    """Picture `number` of a person."""
    pattern = np.random.default_rng(person).normal(size=(4, 4))
    noise = np.random.default_rng(1000 * person + number + 1).normal(size=(SIDE, SIDE))
    values = np.kron(pattern, np.ones((4, 4))) * 50 + noise * 8 + 128
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def draw(root: Path, sites: int = 2, each: int = 4, pictures: int = 4) -> Path:
    """Folders site/person/image: the same names at every site, and different people."""
    for site in range(sites):
        for place in range(each):
            folder = root / f"clinic-{site}" / NAMES[place]
            folder.mkdir(parents=True)
            for number in range(pictures):
                picture(site * each + place, number).save(folder / f"{number}.png")
    return root


def federation(root: Path, unseen: float = 0.5, **sections: Any) -> Federation:
    """Sites of the folders, two people of each to train on and two to test."""
    tables: dict[str, Any] = {
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "natural"},
        "model": {"name": "face_net", "wavelengths": [4], "orientations": 4, "cell": 4},
        "task": {"name": "faces"},
        "train": {"epochs": 2, "batch": 4, "lr": 0.05},
        "rounds": {"rounds": 2},
        **sections,
    }
    made, _ = parse(tables, base=None)
    data = People(path=root, size=SIDE, sites_in_path=True, unseen=unseen)
    return federate(replace(made, data=data))
