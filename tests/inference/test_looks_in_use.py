"""A model that was trained on harmonised images is used on images that are harmonised alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pytest
import torch

import fedsight
from fedsight.core.errors import StoreError
from fedsight.inference.export import ExportedModel
from fedsight.inference.recipe import recipe
from fedsight.inference.saved import load


def trained(tmp_path: Path, harmonise: str) -> Path:
    """A run over two sites, of which one has dark images."""
    rng = np.random.default_rng(0)
    for site, top in (("dark", 60), ("light", 255)):
        for label in ("a", "b"):
            for number in range(6):
                pixels = rng.integers(0, top, (8, 8)).astype(np.uint8)
                pixels[:, : 4 if label == "a" else 2] = 0
                opened_sources.save(tmp_path / "images" / site / label / f"{number}.png", pixels)
    data: dict[str, Any] = {
        "name": "folder", "path": str(tmp_path / "images"), "sites_in_path": True, "size": 8,
        "channels": 1, "harmonise": harmonise,
    }  # fmt: skip
    fedsight.run(
        data=data, split={"name": "natural"}, model={"name": "small_cnn", "width": 4, "blocks": 1},
        rounds={"rounds": 1}, train={"epochs": 1}, out=tmp_path / "run", workers=1,
    )  # fmt: skip
    return tmp_path / "run"


def test_the_images_of_a_site_are_prepared_by_its_own_numbers(tmp_path: Path) -> None:
    run = trained(tmp_path, "site")
    with pytest.raises(StoreError, match="own mean and deviation") as caught:
        load(run)
    assert "--site" in str(caught.value)
    dark, light = (load(run, site).preprocess for site in ("dark", "light"))
    assert dark.std[0] < 0.5 * light.std[0]
    assert dark.mean[0] < 0.5 * light.mean[0]
    with pytest.raises(StoreError, match="no mean and deviation of the images of site 'nowhere'"):
        load(run, "nowhere")
    found = (
        fedsight.load(run).for_site("dark").predict(tmp_path / "images" / "dark" / "a" / "0.png")
    )
    assert len(found) == 1


@pytest.mark.parametrize("kind", ["image", "histogram"])
def test_an_exported_model_harmonises_by_itself(tmp_path: Path, kind: str) -> None:
    saved = load(trained(tmp_path, kind))
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        due = saved.task.predict(saved.module, saved.preprocess.normalise(x))
        found = ExportedModel(saved).eval()(x)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, due)
    steps = " ".join(recipe(saved, normalises=True)["steps"])
    assert "do not harmonise, the file does" in steps
