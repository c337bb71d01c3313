"""Sites with grey and colour images, of 8 and 16 bits and of different sizes, in one federation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import federations
import numpy as np
import opened_sources
import pytest
import torch
from PIL import Image

from fedsight.data.base import Dataset
from fedsight.program import config
from fedsight.program.federation import federate
from fedsight.program.looks import look_of

opened = partial(opened_sources.opened, "folder", sites_in_path=True, near_duplicates="keep")
SITES = ("bern", "lyon", "oslo", "rome", "turin")


def scene(label: int, number: int, height: int, width: int) -> np.ndarray:
    """A bright bar, across or down, from 0 to 1 [height, width]."""
    rows, columns = np.mgrid[0:height, 0:width]
    place = rows / height if label else columns / width
    middle = 0.35 + 0.03 * number
    return np.clip(1.2 - 4 * np.abs(place - middle), 0.1, 0.9)


def write(root: Path, deep: int = 65535) -> Path:
    """The same scenes at five sites, each with its own kind of files; `deep`: white at turin."""
    for label, name in enumerate(("across", "down")):
        for number in range(8):
            grey = partial(scene, label, number)
            of = {site: root / site / name for site in SITES}
            for folder in of.values():
                folder.mkdir(parents=True, exist_ok=True)
            eight = (255 * grey(28, 28)).round().astype(np.uint8)
            Image.fromarray(eight).save(of["lyon"] / f"{number}.png")
            colour = (255 * grey(40, 36)).round().astype(np.uint8)[..., None].repeat(3, 2)
            Image.fromarray(colour).save(of["oslo"] / f"{number}.jpg", quality=95)
            sixteen = (deep * grey(64, 48)).round().astype(np.uint16)
            Image.fromarray(sixteen).save(of["turin"] / f"{number}.png")
            four = np.dstack([colour, np.full(colour.shape[:2], 255, np.uint8)])
            Image.fromarray(four).save(of["bern"] / f"{number}.png")
            Image.fromarray(eight[::2, ::2]).convert("P").save(of["rome"] / f"{number}.gif")
    return root


def by_site(found: Dataset) -> dict[str, torch.Tensor]:
    """The mean image of each site [c, h, w] over the training part's first class."""
    pixels = found.train.images.read(torch.arange(len(found.train)))
    sites, labels = np.array(found.train.sites), found.train.labels
    return {site: pixels[(sites == site) & (labels == 0)].mean(0) for site in SITES}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_scene_looks_the_same_whatever_the_file(tmp_path: Path, channels: int) -> None:
    found = by_site(opened(write(tmp_path), size=16, channels=channels, duplicates="keep"))
    for site in SITES:
        assert found[site].shape == (channels, 16, 16)
        assert float((found[site] - found["lyon"]).abs().mean()) < 0.05
        assert float((found[site][0] - found[site][-1]).abs().max()) < 0.02


def test_images_of_sixteen_bits_that_use_few_of_them_are_told(tmp_path: Path) -> None:
    full = opened(write(tmp_path / "full"), size=16, channels=1, duplicates="keep")
    assert not [note for note in full.notes if "16-bit" in note]
    found = opened(write(tmp_path / "few", deep=4095), size=16, channels=1, duplicates="keep")
    (note,) = [note for note in found.notes if "16-bit" in note]
    assert "site 'turin'" in note
    assert "(12 bits)" in note
    assert "data.harmonise" in note


def program(root: Path, **data: Any) -> Any:
    table = {
        "data": {
            "name": "folder", "path": str(root), "sites_in_path": True, "size": 16, "channels": 1,
            "duplicates": "keep", "near_duplicates": "keep", **data,
        },
        "split": {"name": "natural"},
        "model": {"name": "small_cnn", "width": 4, "blocks": 2},
        "train": {"epochs": 1, "batch": 8, "lr": 0.05},
        "rounds": {"rounds": 1},
    }  # fmt: skip
    return config.parse(table, root)[0]


@pytest.mark.parametrize("harmonise", ["image", "histogram", "site"])
def test_harmonised_the_dark_site_looks_like_the_others(tmp_path: Path, harmonise: str) -> None:
    root = write(tmp_path, deep=4095)
    spreads: dict[str, list[float]] = {}
    for kind in ("none", harmonise):
        of = federate(program(root, harmonise=kind))
        for site in range(5):
            data = of.client(site)
            x = of.batch(data, torch.arange(len(data))).x
            spreads.setdefault(kind, []).append(float(x.std()))
    assert min(spreads["none"]) < 0.2 * max(spreads["none"])
    assert min(spreads[harmonise]) > 0.8 * max(spreads[harmonise])


def test_such_a_federation_trains_and_is_tested_at_every_site(tmp_path: Path) -> None:
    of = federate(program(write(tmp_path), harmonise="site"))
    assert sorted(of.name(site) for site in range(5)) == list(SITES)
    assert bool(torch.isfinite(federations.learn(of).vector).all())
    assert len({round(look_of(of, site)[0][0], 1) for site in range(5)}) == 1
