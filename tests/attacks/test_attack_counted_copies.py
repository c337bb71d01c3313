"""How many training images look like one that is held out, in any view that a program asks for.

An owner who has near copies left out declares how many images are left, exactly, under epsilon too.
Where images were compared as a program wants them prepared, each program asked another question:
with a size of one pixel by two, how many are brighter above than below. Texts were compared in the
words that a program wants read, and images of one colour in its view counted as no copies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacked_site import CLASSES, AttackedSite, program
from numpy.typing import NDArray
from PIL import Image

from fedsight.data.base import Preprocess, sources
from fedsight.data.duplicates.prints import View
from fedsight.data.images import disk
from fedsight.data.images.decode import Origin, raster
from fedsight.data.text.texts import Texts
from fedsight.deploy.declaration import merge_sources

Attack = Callable[..., AttackedSite]
SIZES = ([32, 32], [16, 16], [4, 4], [2, 1], [1, 1])


def as_wanted(
    path: Origin, preprocess: Preprocess, name: str | None = None, thorough: bool = False
) -> tuple[NDArray[Any], View]:
    """The weakened build: what is compared is what the program wants."""
    found = raster(path, preprocess, name, thorough)
    return found, View(found, found)


def images(root: Path, tiled: bool = False) -> Path:
    """40 training images, of which 7 are brighter above, and 12 test images, of which 3 are.

    With `tiled` a training image has a copy with the other label.
    """
    rng = np.random.default_rng(0)
    for part, count, bright in (("train", 40, 7), ("test", 12, 3)):
        for number in range(count):
            pixels = rng.integers(0, 60, (32, 32))
            pixels[:16] += 140 if number < bright else 20
            place = root / part / CLASSES[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    if tiled:
        copied = root / "train" / CLASSES[0] / "0.png"
        (root / "train" / CLASSES[1] / "copy.png").write_bytes(copied.read_bytes())
    return root


def counts(attack: Attack, root: Path, data: Path, **handling: str) -> set[int | None]:
    """The numbers of training images that a site declares to programs of several sizes; None if it
    has none left."""
    owner = {"name": "folder", "path": str(data), **handling}
    site = attack(root.name, owner, epsilon=8.0)
    found: set[int | None] = set()
    for number, size in enumerate(SIZES):
        noise = {"name": "local", "noise_multiplier": 20.0}
        of = program(data, data={"size": size}, privacy=noise)
        said = site.join(of, run=f"run{number}")
        found.add(said["declared"]["total"] if "declared" in said else None)
    return found


@pytest.mark.parametrize("weak", [True, False])
def test_what_looks_alike_is_not_the_programs_to_say(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        monkeypatch.setattr(disk, "raster_and_view", as_wanted)
    data = images(tmp_path / "images")
    found = counts(attack, tmp_path / "site", data, near_duplicates="drop")
    assert (len(found) > 1) == weak, found
    assert weak or None not in found


@pytest.mark.parametrize("weak", [True, False])
def test_what_is_of_one_colour_is_not_the_programs_to_say(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        monkeypatch.setattr(disk, "raster_and_view", as_wanted)
    data = images(tmp_path / "images", tiled=True)
    found = counts(attack, tmp_path / "site", data, duplicates="drop")
    assert (len(found) > 1) == weak, found
    assert weak or None not in found


@pytest.mark.parametrize("weak", [True, False])
def test_what_texts_are_equal_is_not_the_programs_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        monkeypatch.setattr(Texts, "prints", property(lambda _: None, lambda *_: None))
    lines = [f"red {n} x,a,train" for n in range(7)]
    lines += [f"w{n} {n} x,{'ab'[n % 2]},train" for n in range(20)]
    lines += [f"{word} held{n},{'ab'[n % 2]},test" for n, word in enumerate(("red", "blue") * 2)]
    (tmp_path / "all.csv").write_text("\n".join(["text,label,split", *lines]))
    texts = sources.get("texts")
    own = texts(path=tmp_path / "all.csv", duplicates="drop")
    wanted = [texts(path=tmp_path, length=length) for length in (1, 2, 8)]
    found = {len(merge_sources(one, own).open().train) for one in wanted}
    assert (len(found) > 1) == weak, found
