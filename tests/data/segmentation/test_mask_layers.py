"""Several mask files of one image: of one class each, of one object each, or refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import opened_sources
import pytest
from opened_sources import save

from fedsight.data.base import Dataset
from fedsight.program.draft.mask_folders import mask_guess

CLASSES = ["background", "globules", "milia like cyst"]
SIDE = 8

opened = partial(opened_sources.opened, "masks", classes=CLASSES, channels=1, size=SIDE)
refused = partial(opened_sources.refused, "masks", classes=CLASSES, channels=1, size=SIDE)


def image(path: Path, seed: int) -> None:
    save(path, np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE)).astype(np.uint8))


def block(rows: slice, columns: slice = slice(None), value: int = 255) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[rows, columns] = value
    return mask


UPPER, LOWER = block(slice(0, 2)), block(slice(4, 7))


def targets(found: Dataset) -> dict[str, np.ndarray]:
    """The class numbers of each image, by its name."""
    known = {}
    for part in (found.train, found.test):
        assert part.targets is not None
        for index in range(len(part)):
            known[Path(part.images.name(index)).stem] = part.targets[index].numpy()
    return known


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("images/{0}.png", "masks/{0}_{1}.png"),
        ("images/{0}.png", "masks/{0}_mask_{1}.png"),
        ("images/{0}.png", "masks/{0}_{1}_mask.png"),
        ("Training_Input/{0}.jpg", "Training_GroundTruth_v3/{0}_attribute_{1}.png"),  # ISIC
        ("images/{0}.png", "masks/{1}/{0}.png"),
        ("images/{0}.png", "masks/1. {1}/{0}.png"),  # IDRiD
        ("train/images/{0}.png", "train/masks/{1}/{0}.png"),
        ("images/{0}.png", "{1}/{0}.png"),
        ("{0}.png", "{0}_{1}.png"),
        ("images/{0}.png", "masks/{1}/{0}_3.png"),
    ],
)
@pytest.mark.parametrize("separator", ["_", "-", " "])
def test_a_mask_for_each_class(tmp_path: Path, picture: str, mask: str, separator: str) -> None:
    cyst = f"Milia{separator}like{separator}cyst"
    for seed in range(6):
        image(tmp_path / picture.format(f"case-{seed}"), seed)
        save(tmp_path / mask.format(f"case-{seed}", "globules"), UPPER)
        if seed:  # the first has no cyst, and no mask of it
            save(tmp_path / mask.format(f"case-{seed}", cyst), LOWER // 255 * seed)
    found = opened(tmp_path)
    assert found.classes == tuple(CLASSES)
    for name, numbers in targets(found).items():
        expected = UPPER // 255 + 2 * (LOWER > 0) * (name != "case-0")
        assert np.array_equal(numbers, expected)
    assert any("globules 6, milia like cyst 5; without one" in note for note in found.notes)


def test_where_classes_overlap_the_smaller_mask_counts_and_it_is_said(tmp_path: Path) -> None:
    for seed in range(5):
        image(tmp_path / f"images/{seed}.png", seed)
        save(tmp_path / f"masks/{seed}_globules.png", block(slice(0, 1)))
        save(tmp_path / f"masks/{seed}_milia_like_cyst.png", block(slice(0, 3)))
    found = opened(tmp_path)
    for numbers in targets(found).values():
        assert np.array_equal(numbers[:4, 0], [1, 2, 2, 0])
    assert f"{5 * SIDE} pixels lie in masks of two classes: the smaller mask counts" in found.notes


def test_an_image_called_like_anothers_mask_keeps_its_own(tmp_path: Path) -> None:
    for seed in range(5):
        for name, rows in ((f"x{seed}", 1), (f"x{seed}_globules", 3)):
            image(tmp_path / f"images/{name}.png", seed)
            save(tmp_path / f"masks/{name}.png", block(slice(0, rows), value=1))
    found = targets(opened(tmp_path, missing="allow", duplicates="report"))
    assert {int((numbers == 1).sum()) for numbers in found.values()} == {SIDE, 3 * SIDE}
    assert all((found[f"x{seed}"] == 1).sum() == SIDE for seed in range(5))


@pytest.mark.parametrize("number", ["{0}_mask{1}", "{0}_mask_{1}", "{0}_{1}", "{0}-{1:03}"])
def test_masks_of_objects_of_one_class_are_joined(tmp_path: Path, number: str) -> None:
    for seed in range(5):
        image(tmp_path / f"images/case{seed}.png", seed)
        for at in range(3):
            shape = block(slice(2 * at, 2 * at + 1), value=1)
            save(tmp_path / f"masks/{number.format(f'case{seed}', at)}.png", shape)
    found = opened(tmp_path, classes=["background", "cell"])
    for numbers in targets(found).values():
        assert np.array_equal(numbers[:, 0], [1, 0, 1, 0, 1, 0, 0, 0])
    assert any("5 images have several masks, one for each object" in one for one in found.notes)
    error = refused(tmp_path)  # of two classes, which does 0 show?
    assert "of which only the numbers differ" in error.cause
    assert "masks/CLASS/NAME.png" in error.cure


def test_masks_in_the_folder_of_one_image_may_have_any_name(tmp_path: Path) -> None:
    """As the Data Science Bowl of 2018 has its nuclei."""
    for seed in range(5):
        image(tmp_path / f"train/a{seed}c/images/a{seed}c.png", seed)
        for at, name in enumerate(("f00d1", "beef2")):
            shape = block(slice(3 * at, 3 * at + 2), value=1)
            save(tmp_path / f"train/a{seed}c/masks/{name}{seed}.png", shape)
    found = opened(tmp_path, classes=["background", "nucleus"])
    for numbers in targets(found).values():
        assert np.array_equal(numbers[:, 0], [1, 1, 0, 1, 1, 0, 0, 0])
    guess = mask_guess(tmp_path)
    assert guess is not None
    assert "sites_in_path" not in guess.data


def test_two_drawings_of_one_object_are_refused(tmp_path: Path) -> None:
    for seed in range(4):
        image(tmp_path / f"images/x{seed}.png", seed)
        save(tmp_path / f"masks/x{seed}_mask_1.png", block(slice(0, 4), value=1))
        save(tmp_path / f"masks/x{seed}_mask_2.png", block(slice(1, 4), value=1))
    error = refused(tmp_path, classes=["background", "nodule"])
    assert "x0_mask_2.png' lies mostly in the other masks" in error.cause
    assert "data.mask_suffix" in error.cure
    found = opened(tmp_path, classes=["background", "nodule"], mask_suffix="_mask_1")
    assert len(targets(found)) == 4


def test_a_mask_of_one_class_with_more_values_is_refused(tmp_path: Path) -> None:
    for seed in range(4):
        image(tmp_path / f"images/x{seed}.png", seed)
        save(tmp_path / f"masks/x{seed}_globules.png", UPPER + LOWER // 2)
    error = refused(tmp_path)
    assert "x0_globules.png' is that of one class, but has 2 values or colours" in error.cause
    assert "black and one other value" in error.cure
    named = refused(tmp_path, values={"background": 0, "globules": 127, "milia like cyst": 255})
    assert "says its class by its name" in named.cause
    assert "leave data.values out" in named.cure


def test_a_whole_mask_beside_those_of_classes_is_refused(tmp_path: Path) -> None:
    for seed in range(4):
        image(tmp_path / f"images/x{seed}.png", seed)
        save(tmp_path / f"masks/x{seed}.png", UPPER // 255)
        save(tmp_path / f"masks/x{seed}_globules.png", UPPER)
    error = refused(tmp_path)
    assert "x0.png' has 2 masks: 'x0.png' and 'x0_globules.png'" in error.cause
    assert "data.mask_suffix" in error.cure


def test_without_classes_the_names_tell_what_to_set(tmp_path: Path) -> None:
    for seed in range(4):
        image(tmp_path / f"images/x{seed}.png", seed)
        save(tmp_path / f"masks/x{seed}_attribute_globules.png", UPPER)
        save(tmp_path / f"masks/x{seed}_attribute_streaks.png", LOWER)
    guess = mask_guess(tmp_path)
    assert guess is not None
    assert guess.data["classes"] == ["background", "globules", "streaks"]
    error = refused(tmp_path, classes=None)
    assert 'data.classes = ["background", "globules", "streaks"]' in error.cure
    misspelt = refused(tmp_path, classes=["background", "lesion"])
    assert '"globules", "streaks"' in misspelt.cure
    found = opened(tmp_path, classes=guess.data["classes"])
    assert set(np.unique(targets(found)["x0"])) == {0, 1, 2}
