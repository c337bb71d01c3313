"""Where in an image its object is, from numbers of images of each class that a site declares.

Splits and counts use one class for each image with a mask or boxes. It was the most frequent one of
what the network is shown: of the mask at the program's size, of the boxes in the program's frame.
A small mask keeps every so many pixels of the file's, and a cropped frame its middle. So each
proposal asked whether an object is at some place, without training and without epsilon; and objects
that a program's vocabulary lacks were counted among the corrupt images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacked_site import AttackedSite
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedsight.data.base import Dataset
from fedsight.data.detection import assembly
from fedsight.data.detection.boxes import majority, pack
from fedsight.data.segmentation.truths import Truths
from fedsight.data.sources.masks import Masks
from fedsight.deploy.declaration import declare, open_site
from fedsight.deploy.site.owner import parse_owner
from fedsight.program.config import parse
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
Mask = NDArray[np.uint8]
SIDE = 16  # of masks
FRAME = 64  # side of images with boxes
COLUMNS = (5, 7)  # of the one object beside the background
KEEP = {"duplicates": "keep", "near_duplicates": "keep"}


def program(data: dict[str, Any], task: str, model: dict[str, Any], **changes: Any) -> Program:
    """A program that asks for what `changes` says of the owner's images."""
    shown = {"channels": 1, "mean": [0.0], "std": [1.0], **changes}
    table = {
        "data": {key: data[key] for key in ("name", "path", "test_path", "images") if key in data}
        | shown,
        "split": {"name": "iid", "sites": 2},
        "task": {"name": task},
        "model": model,
        "rounds": {"rounds": 1, "weighting": "uniform"},
        "secure": {"name": "secagg"},
    }
    return parse(table, Path())[0]


def drawn(root: Path, masks: Sequence[Mask]) -> dict[str, Any]:
    """The owner's [data]: images whose masks are `masks`, of which the last is for testing."""
    for number, mask in enumerate(masks):
        part = root / ("test" if number == len(masks) - 1 else "train")
        for kind, pixels in (("images", mask ^ (number + 1)), ("masks", mask)):
            (part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(part / kind / f"{number}.png")
    return {"name": "masks", "path": str(root), "classes": ["background", "lesion"], **KEEP}


def masked(data: dict[str, Any], *size: int) -> Program:
    """A program that asks for masks of this size."""
    unet = {"name": "unet", "levels": 2, "width": 4}
    return program(data, "segment", unet, size=list(size), classes=["background", "lesion"])


def annotated(
    root: Path, images: Sequence[Sequence[tuple[str, int, int, int, int]]]
) -> dict[str, Any]:
    """The owner's [data]: images with these boxes (class, left, top, width, height); the last is
    for testing."""
    root.mkdir(parents=True, exist_ok=True)
    names = ["cat", "lion"]
    for part, some in (("train", images[:-1]), ("test", images[-1:])):
        table: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        table["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
        for number, objects in enumerate(some):
            file = f"{part}{number}.png"
            Image.fromarray(np.full((FRAME, FRAME), 9 * number, np.uint8)).save(root / file)
            entry = {"id": number, "file_name": file, "width": FRAME, "height": FRAME}
            table["images"].append(entry)
            for name, *box in objects:
                found = {"id": len(table["annotations"]), "image_id": number, "bbox": box}
                found |= {"category_id": names.index(name), "area": box[2] * box[3], "iscrowd": 0}
                table["annotations"].append(found)
        (root / f"{part}.json").write_text(json.dumps(table))
    paths = {"path": str(root / "train.json"), "test_path": str(root / "test.json")}
    return {"name": "boxes", **paths, "images": str(root), **KEEP}


def boxed(data: dict[str, Any], size: Sequence[int], fit: str, classes: Sequence[str]) -> Program:
    """A program that asks for boxes in a frame."""
    detector = {"name": "small_detector", "width": 4}
    return program(data, "detect", detector, size=list(size), fit=fit, classes=list(classes))


def as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened build: an image's class is that of what the network is shown."""
    whole = Masks._truths

    def small(self: Masks) -> Truths:
        found = whole(self)
        return replace(found, draw=lambda index: self._small(found.draw(index)).numpy())

    packed: list[Tensor] = []

    def remembered(*given: Any) -> Tensor:
        packed.append(pack(*given))
        return packed[-1]

    monkeypatch.setattr(Masks, "_truths", small)
    monkeypatch.setattr(assembly, "pack", remembered)
    monkeypatch.setattr(assembly, "majority", lambda _: majority(packed[-2]))


def answers(site: AttackedSite, programs: Sequence[Program]) -> list[dict[str, Any]]:
    """What the site declares to each program."""
    said = [site.join(of, run=f"run{number}") for number, of in enumerate(programs)]
    return [one["declared"] for one in said]


def kept_columns(width: int) -> set[int]:
    """Which of the file's columns a mask of this width keeps."""
    row = Image.fromarray(np.arange(SIDE, dtype=np.uint8)[None])
    return set(np.array(row.resize((width, 1), Image.Resampling.NEAREST))[0].tolist())


@pytest.mark.parametrize("weak", [True, False])
def test_where_a_lesion_is(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        as_shown(monkeypatch)
    masks = [np.zeros((SIDE, SIDE), np.uint8) for _ in range(4)]
    masks[2][9:13, slice(*COLUMNS)] = 1
    masks[-1][:] = 1
    data = drawn(tmp_path / "images", masks)
    site = attack("ward", data, require=["secure_aggregation"])
    widths = range(4, 8)
    told = answers(site, [masked(data, SIDE, width) for width in widths])
    seen = [one["labels"][1] > 0 for one in told]
    places = [
        (first, last)
        for first in range(SIDE)
        for last in range(first + 1, SIDE + 1)
        if seen == [bool({*range(first, last)} & kept_columns(width)) for width in widths]
    ]
    if weak:
        assert COLUMNS in places
        assert len(places) == 4, "of 136"
    else:
        assert all(seen)


@pytest.mark.parametrize("weak", [True, False])
def test_whether_an_object_is_in_the_middle(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        as_shown(monkeypatch)
    images = [[("cat", 28, 28, 8, 8)] for _ in range(4)]
    images[1] = [("lion", 26, 42, 8, 6)]
    data = annotated(tmp_path / "images", images)
    site = attack("ward", data, require=["secure_aggregation"])
    vocabulary = ("nothing", "cat", "lion")
    frames = [boxed(data, (high, FRAME), "crop", vocabulary) for high in (FRAME, 32, 16)]
    lions = [one["labels"][2] for one in answers(site, frames)]
    assert lions == ([1, 1, 0] if weak else [1, 1, 1])


@pytest.mark.parametrize("weak", [True, False])
def test_how_many_objects_there_are_of_a_class(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        corrupt = property(lambda found: len(found.skipped))
        monkeypatch.setattr(Dataset, "corrupt", corrupt)
    images = [[("cat", 1, 1, 4, 4), *[("lion", 6, 6, 4, 4)] * number] for number in (0, 3, 1, 0)]
    data = annotated(tmp_path / "images", images)
    site = attack("ward", {**data, "unknown": "skip"}, require=["secure_aggregation"])
    vocabularies = (("cat", "lion"), ("cat",))
    told = answers(site, [boxed(data, (16, 16), "stretch", some) for some in vocabularies])
    assert [one["skipped"] for one in told] == ([0, 4] if weak else [0, 0])


def declared(data: dict[str, Any], of: Program) -> dict[str, Any]:
    """What a site of these images declares."""
    own = parse_owner({"data": data}, Path())
    return declare(*open_site(of, own, "ward"), share=False).table()


sides = st.integers(1, 20)


@settings(max_examples=8, deadline=None)
@given(sides, sides, st.data())
def test_masks_with_the_same_classes_at_full_size_declare_the_same(
    tmp_path_factory: pytest.TempPathFactory, high: int, wide: int, data: st.DataObject
) -> None:
    root, made = tmp_path_factory.mktemp("masks"), []
    pixels = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    for name in ("one", "other"):
        masks = []
        for number in pixels:
            spots = data.draw(st.permutations(range(9)))[:number]
            masks.append(np.isin(np.arange(9), spots).reshape(3, 3).astype(np.uint8))
        owned = drawn(root / name, masks)
        made.append(declared(owned, masked(owned, high, wide)))
    assert made[0] == made[1]


@settings(max_examples=8, deadline=None)
@given(sides, sides, st.sampled_from(["stretch", "crop", "pad"]), st.data())
def test_boxes_of_the_same_classes_declare_the_same(
    tmp_path_factory: pytest.TempPathFactory, high: int, wide: int, fit: str, data: st.DataObject
) -> None:
    root, made = tmp_path_factory.mktemp("boxes"), []
    place = st.integers(0, FRAME - 4)
    names = st.lists(st.sampled_from(["cat", "lion"]), max_size=3)
    labels = data.draw(st.lists(names, min_size=4, max_size=4))
    for name in ("one", "other"):
        images = [
            [(label, data.draw(place), data.draw(place), 4, 4) for label in each] for each in labels
        ]
        owned = annotated(root / name, images)
        made.append(declared(owned, boxed(owned, (high, wide), fit, ("nothing", "cat", "lion"))))
    assert made[0] == made[1]


def test_corrupt_images_are_counted(tmp_path: Path) -> None:
    """What the number is for."""
    data = annotated(tmp_path, [[("cat", 1, 1, 4, 4), ("lion", 6, 6, 4, 4)] for _ in range(4)])
    (tmp_path / "train1.png").write_bytes(b"junk")
    own = {**data, "corrupt": "skip", "unknown": "skip"}
    assert declared(own, boxed(data, (16, 16), "stretch", ("cat",)))["skipped"] == 1
