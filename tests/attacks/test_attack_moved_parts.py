"""An image with another label moves many others between the training and the test part.

DP-SGD's noise hides one image. But a test part that is spread evenly over the classes depends on
all images at once: with one image more in a class, or one less, or one that is a copy of another,
the class is drawn anew, and every fifth image of it changes sides. Whoever knows the other images,
and the seed of the drawing, which is 0 unless the owner chose one, can compute both training parts.
The sums of their gradients are many clips apart, and the noise is sized for one. Noised figures are
sums over another part likewise. Now each image is drawn by itself where noise hides images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from attacked_site import CLASSES, SIDE, Pixels, noise_images, program
from PIL import Image
from test_attack_dpsgd_coupling import epsilon, made, right_guesses
from torch import Tensor, nn

from fedsight.client.per_image import PerImage, Single
from fedsight.core.errors import DataError
from fedsight.core.types import Batch
from fedsight.data import layouts, parts, single_draws
from fedsight.data.base import Dataset, Part
from fedsight.data.single_draws import drawn_singly
from fedsight.data.sources import texts
from fedsight.data.text.texts import Texts
from fedsight.deploy import declaration
from fedsight.deploy.declaration import open_site
from fedsight.deploy.site.opening import open_images
from fedsight.deploy.site.owner import parse_owner
from fedsight.tasks.base import tasks

COUNT, CLIP = 200, 1.0
TARGET = f"{COUNT // 2:03d}.png"
Change = Callable[[Path], None]


def relabelled(root: Path) -> None:
    """The target has the other label."""
    (root / CLASSES[0] / TARGET).rename(root / CLASSES[1] / TARGET)


def copied(root: Path) -> None:
    """The target shows what another image does, which is in the other part."""
    tested = {name for name, _ in members(drawn(root).test)}
    others = sorted((root / CLASSES[0]).iterdir())
    other = next(path for path in others if (path.name in tested) != (TARGET in tested))
    (root / CLASSES[0] / TARGET).write_bytes(other.read_bytes())


def gone(root: Path) -> None:
    """The target is not there."""
    (root / CLASSES[0] / TARGET).unlink()


CHANGES: dict[str, Change] = {one.__name__: one for one in (relabelled, copied, gone)}


def site(root: Path, images: list[Pixels], change: Change = lambda root: None) -> Path:
    """The folder of a site without marked parts, after a change."""
    for number, pixels in enumerate(images):
        folder = root / CLASSES[number % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    change(root)
    return root


def drawn(root: Path) -> Dataset:
    """The site's data set, as it is opened for a program; copies are not refused."""
    data = {"name": "folder", "path": str(root), "duplicates": "report"}
    owner = parse_owner({"data": data, "contract": {"epsilon": 8.0}}, root)
    federation, _ = open_site(program(root), owner, "ward")
    facts = open_images(owner)  # what the owner is told is what is done
    assert (facts["train"], facts["test"]) == (
        len(federation.dataset.train),
        len(federation.dataset.test),
    )
    return federation.dataset


def marked(root: Path, others: str, tested: int) -> Path:
    """A folder with marked parts: one for training, perhaps another, and `tested` test images."""
    pixels = noise_images(40 + tested)
    for number, one in enumerate(pixels):
        part = "test" if number >= 40 else others if others and number % 2 else "train"
        place = root / part / CLASSES[number // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(place / f"{number:03d}.png")
    return root


@pytest.mark.parametrize(("others", "where"), [("val", parts), ("", layouts)])
def test_the_only_test_image_does_not_decide_what_the_others_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str, where: ModuleType
) -> None:
    """Without it the validation part would be tested on, or test images would be drawn."""
    one, none = (marked(tmp_path / str(count), others, count) for count in (1, 0))
    assert len(drawn(one).test) == 1
    with pytest.raises(DataError, match="one image that is marked would decide"):
        drawn(none)
    monkeypatch.setattr(where, "refuse_other_tests", lambda *_: None)
    assert len(drawn(none).test) > 3


def members(part: Part) -> set[tuple[str, int]]:
    """The images of a part: the names of their files, and labels."""
    names = [Path(part.images.name(at)).name for at in range(len(part))]
    return set(zip(names, part.labels.tolist(), strict=True))


def clipped_sum(part: Part) -> Tensor:
    """The clipped sum of a step that takes in all images of a part."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, len(CLASSES)))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    x = part.images.read(torch.arange(len(part))) * 4 - 1
    y = torch.from_numpy(part.labels)
    images = [Single(Batch(x[[at]], y[[at]]), at) for at in range(len(part))]
    found = made(PerImage, tasks.get("classify")(), module).clipped_sum(images, CLIP)
    return torch.cat([one.flatten() for one in found])


def parts(root: Path, change: str) -> tuple[Dataset, Dataset]:
    """The data sets of two sites that differ in the target alone."""
    images = noise_images(COUNT)
    before = drawn(site(root / "before" / "images", images))
    return before, drawn(site(root / "after" / "images", images, CHANGES[change]))


def moved(one: Dataset, other: Dataset) -> int:
    """How many images, beside the target, are in the training part of one data set alone."""
    found = members(one.train) ^ members(other.train)
    return len({name for name, _ in found} - {TARGET})


@pytest.mark.parametrize("change", CHANGES)
def test_where_the_part_is_spread_evenly_one_image_moves_many(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (declaration, single_draws):
        monkeypatch.setattr(module, "drawn_singly", contextlib.nullcontext)
    before, after = parts(tmp_path, change)
    assert moved(before, after) > 10
    apart = float((clipped_sum(before.train) - clipped_sum(after.train)).norm()) / CLIP
    assert apart > 3
    assert epsilon(apart) > 3 * epsilon(1.0)
    assert right_guesses(apart) > 0.64


@pytest.mark.parametrize("change", CHANGES)
def test_in_ours_it_moves_alone(change: str, tmp_path: Path) -> None:
    before, after = parts(tmp_path, change)
    assert moved(before, after) == 0
    apart = float((clipped_sum(before.train) - clipped_sum(after.train)).norm()) / CLIP
    assert apart <= (1 if change == "gone" else 2) * (1 + 1e-4)
    share = len(before.test) / COUNT
    assert 0.1 < share < 0.3
    assert np.bincount(before.test.labels).min() > 0


# -- rows, which have numbers in place of names ----------------------------------------------------


def trained_texts(path: Path, numbers: Sequence[int]) -> set[str]:
    """The training part of a file with a text for each number, as a site opens it that hides
    single texts."""
    lines = [f"text {number} of {number**2},{CLASSES[number % 2]}" for number in numbers]
    path.write_text("\n".join(["text,label", *lines]))
    with drawn_singly():
        images = texts.TextFile(path=path).open().train.images
    assert isinstance(images, Texts)
    return set(images.excerpts)


def moved_texts(folder: Path) -> int:
    """How many texts change sides if one before them is not there."""
    kept = [number for number in range(COUNT) if number != COUNT // 2]
    whole = trained_texts(folder / "whole.csv", range(COUNT))
    (folder / "whole.csv").unlink()
    fewer = trained_texts(folder / "whole.csv", kept)
    return len((whole ^ fewer) - {f"text {COUNT // 2} of {COUNT**2 // 4}"})


def test_drawn_by_its_line_a_text_less_moves_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "content_key", lambda content: "")
    assert moved_texts(tmp_path) > 10


def test_in_ours_a_text_less_moves_none(tmp_path: Path) -> None:
    assert moved_texts(tmp_path) == 0
