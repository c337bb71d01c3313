"""Settings of a source that a program chose at a site, and that select single images.

Which classes were labelled is a table by the sites in the owner's own files. What is not labelled
in an image is not measured there, so two programs whose tables differ in one such site tell, by
subtraction of two exact figures, all that was measured on its images: on one, if it has one. And a
program could train on the images that the owner had set aside for validation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacked_site import AttackedSite, known
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedsight.client.step import Client
from fedsight.data.base import sources
from fedsight.deploy import declaration
from fedsight.deploy.declaration import merge_sources, open_site
from fedsight.deploy.site.owner import read_owner
from fedsight.program.config import parse
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
SIDE = 32


def annotated(root: Path) -> dict[str, Any]:
    """The owner's source: 11 training and 21 test images. The objects of the last one, the only
    test image of the ward icu, reach beyond it, and the owner has them cut off at its border."""
    rng = np.random.default_rng(0)
    wards = [*["ward"] * 10, "icu"], [*["ward"] * 20, "icu"]
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for split, of in zip(("train", "test"), wards, strict=True):
        for ward in of:
            number = len(images)
            pixels = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "split": split})
            images[-1]["ward"] = ward
            for _ in range(int(rng.integers(1, 4))):
                x, y, w, h = (int(value) for value in rng.integers(1, 14, 4))
                x += SIDE - 8 if ward == "icu" and split == "test" else 0
                box = {"category_id": 1, "bbox": [x, y, w + 10, h + 2]}
                boxes.append({"id": len(boxes), "image_id": number, **box})
    kinds = [{"id": 1, "name": "tumour"}]
    found = {"images": images, "annotations": boxes, "categories": kinds}
    (root / "all.json").write_text(json.dumps(found))
    path = str(root / "all.json")
    return {"name": "boxes", "path": path, "site_key": "ward", "outside": "clip"}


def detecting(owner: dict[str, Any], **data: Any) -> Program:
    size = {"size": SIDE, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    table = {
        "data": {**owner, **size, "classes": ["tumour"], **data},
        "task": {"name": "detect"},
        "model": {"name": "small_detector"},
        "split": {"name": "natural"},
        "train": {"batch": 4},
        "rounds": {"rounds": 1, "weighting": "uniform"},
    }
    return parse(table, base=Path(owner["path"]).parent)[0]


def measured(site: AttackedSite, of: Program, model: Tensor, run: str) -> NDArray[Any]:
    assert "error" not in site.join(of, run)
    return np.ravel(site.measure(model)["metrics"]["objects"][0])


def alone(site: AttackedSite, of: Program, model: Tensor) -> NDArray[Any]:
    """What is measured on the last test image, the only one of its ward."""
    federation, _ = open_site(of, read_owner(site.home / "owner.toml", None), site.home.name)
    client, part = Client(federation), federation.tested(federation.views[0])
    client.load(model, {})
    client.model.eval()
    batch = client.batch(part, torch.tensor([len(federation.dataset.test) - 1]))
    with torch.inference_mode():
        found = of.task.measure(client.model, batch, 1)
    return np.ravel(found["objects"].total)


@pytest.mark.parametrize("weak", [True, False])
def test_two_programs_do_not_tell_what_was_measured_on_one_image(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        keys = declaration.PROGRAM_KEYS | {"outside"}
        monkeypatch.setattr(declaration, "PROGRAM_KEYS", keys)
    owner = annotated(tmp_path)
    whole, without = detecting(owner), detecting(owner, outside="skip")
    site, federation = attack("site", owner), known(whole)
    model = federation.initial[federation.layout.travelling]
    left = measured(site, whole, model, "run1") - measured(site, without, model, "run2")
    target = alone(site, whole, model)
    assert target.any()
    if weak:
        assert (left == target).all()
    else:
        assert not left.any()


def part(count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels = np.random.default_rng(count).integers(0, 255, (count, 8, 8)).astype(np.uint8)
    return pixels, (np.arange(count) % 2)[:, None].astype(np.uint8)


@pytest.mark.parametrize("weak", [True, False])
def test_what_is_set_aside_is_not_trained_on_because_a_program_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        keys = declaration.PROGRAM_KEYS | {"validation"}
        monkeypatch.setattr(declaration, "PROGRAM_KEYS", keys)
    arrays = {}
    for name, count in (("train", 20), ("val", 12), ("test", 12)):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = part(count)
    np.savez(tmp_path / "all.npz", **arrays)
    medmnist = sources.get("medmnist")
    own = medmnist(path=tmp_path / "all.npz", validation="leave_out")
    opened = merge_sources(medmnist(path=tmp_path, validation="train"), own).open()
    assert len(opened.train) == (32 if weak else 20)
