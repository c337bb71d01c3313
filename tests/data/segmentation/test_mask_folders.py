"""Images and masks in the folders of public data sets: paired, with their parts, or refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import opened_sources
import pytest
from opened_sources import save

from fedsight.data.base import Dataset, Part

CLASSES = ["background", "lesion"]
SIDE = 8

opened = partial(opened_sources.opened, "masks", classes=CLASSES, channels=1, size=SIDE)
refused = partial(opened_sources.refused, "masks", classes=CLASSES, channels=1, size=SIDE)


def pair(root: Path, image: str, mask: str, seed: int) -> None:
    """An image, and a mask whose lesion is as high and wide as the seed says."""
    rng = np.random.default_rng(seed)
    save(root / image, rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8))
    save(root / mask, drawn(seed))


def drawn(seed: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[: 1 + seed % SIDE, : 1 + seed // SIDE] = 1
    return mask


def shown(part: Part | None) -> set[int]:
    """The seeds of a part's images, each of which has its own mask."""
    if part is None:
        return set()
    assert part.targets is not None
    found = set()
    for index in range(len(part)):
        seed = int(Path(part.images.name(index)).stem.split("-")[0].removeprefix("x"))
        assert np.array_equal(part.targets[index].numpy(), drawn(seed))
        found.add(seed)
    return found


def parts(found: Dataset) -> tuple[set[int], set[int], set[int]]:
    return shown(found.train), shown(found.validation), shown(found.test)


TRAIN, VAL, TEST = set(range(6)), set(range(10, 13)), set(range(20, 23))
PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{0}/x{1}.jpg", "masks/{0}/x{1}.png"),
        ("{0}/images/x{1}.png", "{0}/masks/x{1}.png"),
        ("img_dir/{0}/x{1}.jpg", "ann_dir/{0}/x{1}.png"),  # MMSegmentation
        ("ADE/images/{0}/x{1}.jpg", "ADE/annotations/{0}/x{1}.png"),  # ADE20K
        ("{0}/x{1}.png", "{0}_masks/x{1}_mask.gif"),  # Carvana
        ("{0}/x{1}.png", "{0}annot/x{1}.png"),  # CamVid as SegNet has it
        ("{0}/x{1}.png", "{0}_labels/x{1}_L.png"),  # CamVid
        ("{0}/x{1}.jpg", "{0}/x{1}_mask.png"),
        ("{0}/x{1}.jpg", "{0}/x{1}_segmentation.png"),  # ISIC
        ("{0}_Data/x{1}.jpg", "{0}_GroundTruth/x{1}_segmentation.png"),
        ("ISIC_Task1-2_{0}_Input/x{1}.jpg", "ISIC_Task1_{0}_GroundTruth/x{1}_segmentation.png"),
        ("Images/{0}/x{1}.jpg", "Ground_Truth/{0}/x{1}.png"),
        (
            "leftImg8bit/{0}/aachen/x{1}-a_000019_leftImg8bit.png",
            "gtFine/{0}/aachen/x{1}-a_000019_gtFine_labelIds.png",
        ),
        (
            "leftImg8bit_trainvaltest/leftImg8bit/{0}/ulm/x{1}-a_leftImg8bit.png",
            "gtFine_trainvaltest/gtFine/{0}/ulm/x{1}-a_gtFine_labelTrainIds.png",
        ),
    ],
)
def test_public_layouts_of_masks(tmp_path: Path, image: str, mask: str) -> None:
    for part, seeds in PARTS.items():
        for seed in seeds:
            pair(tmp_path, image.format(part, seed), mask.format(part, seed), seed)
    found = opened(tmp_path)
    assert parts(found) == (TRAIN, VAL, TEST)
    assert not found.passed_over
    assert any("(validation)" in note for note in found.notes)


@pytest.mark.parametrize("suffix", ["Train", "training", "train2017"])
def test_parts_are_known_by_any_of_their_names(tmp_path: Path, suffix: str) -> None:
    for part, seeds in ((suffix, TRAIN), ("Validation", VAL)):
        for seed in seeds:
            pair(tmp_path, f"images/{part}/x{seed}.jpg", f"masks/{part}/x{seed}.png", seed)
    assert parts(opened(tmp_path)) == (TRAIN, set(), VAL)


def test_without_parts_a_test_part_is_drawn(tmp_path: Path) -> None:
    for seed in range(10):
        pair(tmp_path, f"images/x{seed}.png", f"masks/x{seed}.png", seed)
    found = opened(tmp_path)
    assert len(found.test) == 2
    assert shown(found.train) | shown(found.test) == set(range(10))


def test_sites_of_folders(tmp_path: Path) -> None:
    for site, first in (("lyon", 0), ("oslo", 10)):
        for seed in range(first, first + 4):
            part = "val" if seed % 10 == 3 else "train"
            pair(
                tmp_path,
                f"{site}/{part}/images/x{seed}.png",
                f"{site}/{part}/masks/x{seed}.png",
                seed,
            )
    found = opened(tmp_path, sites_in_path=True)
    assert parts(found) == ({0, 1, 2, 10, 11, 12}, set(), {3, 13})
    assert sorted(set(found.train.sites or ())) == ["lyon", "oslo"]


def test_an_image_outside_of_the_sites_is_refused(tmp_path: Path) -> None:
    for seed in range(6):
        pair(tmp_path, f"lyon/images/x{seed}.png", f"lyon/masks/x{seed}.png", seed)
    pair(tmp_path, "images/x9.png", "masks/x9.png", 9)
    error = refused(tmp_path, sites_in_path=True)
    assert "x9.png' is not in the folder of a site" in error.cause
    assert "data.sites_in_path = false" in error.cure


def voc(root: Path) -> Path:
    for seed in TRAIN | VAL | TEST:
        pair(root, f"JPEGImages/x{seed}.jpg", f"SegmentationClass/x{seed}.png", seed)
        save(root / f"SegmentationObject/x{seed}.png", drawn(seed))
    save(root / "JPEGImages/x99.jpg", drawn(1))  # of the detection task alone
    sets = root / "ImageSets/Segmentation"
    sets.mkdir(parents=True)
    for part, seeds in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN | VAL)):
        (sets / f"{part}.txt").write_text("".join(f"x{seed}\n" for seed in sorted(seeds)))
    return root


@pytest.mark.parametrize("above", ["", "VOCdevkit/VOC2012"])
def test_voc_image_sets_of_segmentation(tmp_path: Path, above: str) -> None:
    root = voc(tmp_path / above)
    found = opened(tmp_path)
    assert parts(found) == (TRAIN, set(), VAL)
    # those of the unlisted test part with their masks, and x99
    assert found.passed_over["in no image set"] == 2 * len(TEST) + 1
    assert found.passed_over["other drawings"] == 12
    assert any("image sets" in note for note in found.notes)
    (root / "ImageSets/Segmentation/val.txt").write_text("x10\nx77\n")
    error = refused(tmp_path)
    assert "val.txt, line 2" in error.cause
    assert "'x77'" in error.cause


def test_lists_of_pairs_say_the_parts(tmp_path: Path) -> None:
    for seed in TRAIN | VAL:
        pair(tmp_path, f"images/x{seed}.jpg", f"annotations/x{seed}.png", seed)
    for part, seeds in (("train", TRAIN), ("val", VAL)):  # as PaddleSeg has them
        lines = [f"images/x{seed}.jpg annotations/x{seed}.png\n" for seed in seeds]
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    assert parts(opened(tmp_path)) == (TRAIN, set(), VAL)
    pair(tmp_path, "images/b/x3.jpg", "annotations/b/x3.png", 3)
    assert "is the name of two images" in refused(tmp_path).cause


def test_what_has_no_counterpart_is_refused_or_counted(tmp_path: Path) -> None:
    for seed in range(10):
        pair(tmp_path, f"images/x{seed}.png", f"masks/x{seed}.png", seed)
    (tmp_path / "masks/x3.png").unlink()
    (tmp_path / "images/x4.png").unlink()
    (tmp_path / "images/x5.png").unlink()
    error = refused(tmp_path)
    assert "1 image has no mask" in error.cause
    assert "x3.png" in error.cause
    assert "2 masks have no image" in error.cause
    assert "data.unpaired = 'skip'" in error.cure
    found = opened(tmp_path, unpaired="skip")
    assert found.passed_over == {"images without a mask": 1, "masks without an image": 2}
    assert shown(found.train) | shown(found.test) == set(range(10)) - {3, 4, 5}


def test_a_test_part_without_masks_is_not_measured_by_chance(tmp_path: Path) -> None:
    for seed in TRAIN:
        pair(tmp_path, f"train/images/x{seed}.png", f"train/masks/x{seed}.png", seed)
    for seed in TEST:  # as competitions have it
        save(tmp_path / f"test/images/x{seed}.png", drawn(seed))
    assert "3 images have no mask" in refused(tmp_path).cause
    found = opened(tmp_path, unpaired="skip")
    assert len(found.test) == 1
    assert any("test images are drawn" in note for note in found.notes)
    assert found.passed_over == {"images without a mask": 3}


def test_a_mask_of_another_part_is_no_counterpart(tmp_path: Path) -> None:
    for seed in range(8):
        part = "val" if seed > 5 else "train"
        pair(tmp_path, f"images/{part}/x{seed}.png", f"masks/{part}/x{seed}.png", seed)
    (tmp_path / "masks/train/x2.png").rename(tmp_path / "masks/val/x2.png")
    cause = refused(tmp_path).cause
    assert "1 image has no mask" in cause
    assert "1 mask has no image" in cause


def test_a_misspelt_part_is_refused(tmp_path: Path) -> None:
    for part, seeds in (("train", TRAIN), ("vla", VAL)):
        for seed in seeds:
            pair(tmp_path, f"images/{part}/x{seed}.png", f"masks/{part}/x{seed}.png", seed)
    error = refused(tmp_path)
    assert "'vla' beside 'train'" in error.cause
    assert "did you mean 'val'?" in error.cure


def cityscapes(root: Path) -> Path:
    for part, seeds in (("train", TRAIN), ("val", VAL)):
        for seed in seeds:
            stem = f"{part}/ulm/x{seed}-a"
            marks = f"gtFine/{stem}_gtFine_"
            pair(root, f"leftImg8bit/{stem}_leftImg8bit.png", f"{marks}labelTrainIds.png", seed)
            for kind in ("color", "instanceIds", "labelIds"):
                save(root / f"{marks}{kind}.png", 7 * drawn(seed))
            (root / f"{marks}polygons.json").write_text("{}")
    return root


def test_of_several_masks_the_setting_says_which_counts(tmp_path: Path) -> None:
    root = cityscapes(tmp_path)
    error = refused(root)
    assert "has 2 masks" in error.cause
    assert "labelIds.png" in error.cause
    assert "data.mask_suffix" in error.cure
    found = opened(root, mask_suffix="_gtFine_labelTrainIds")
    assert parts(found) == (TRAIN, set(), VAL)
    assert found.passed_over == {".json": 9, "other drawings": 27}
    cities = opened(root, mask_suffix="_labelTrainIds", sites_in_path=True)
    assert set(cities.train.sites or ()) == {"ulm"}


def test_two_drawings_beside_an_image_are_refused(tmp_path: Path) -> None:
    for seed in range(6):  # as BUSI has it
        pair(tmp_path, f"benign/x{seed}.png", f"benign/x{seed}_mask.png", seed)
    save(tmp_path / "benign/x2_mask_1.png", drawn(2))
    error = refused(tmp_path)
    assert "x2_mask_1.png' lies mostly in the other masks of its image" in error.cause
    assert "data.mask_suffix" in error.cure
    (tmp_path / "benign/x2_mask_1.png").unlink()
    assert len(opened(tmp_path).train) == 5


def test_folders_without_masks_say_how_masks_are_found(tmp_path: Path) -> None:
    save(tmp_path / "cat/1.png", drawn(1))
    error = refused(tmp_path)
    assert "neither masks nor outlines" in error.cause
    assert "NAME_mask.png" in error.cure
    save(tmp_path / "masks/2.png", drawn(1))
    assert "no image has a mask (1 images, 1 masks)" in refused(tmp_path).cause


def test_classes_of_masks_have_to_be_named(tmp_path: Path) -> None:
    for seed in range(4):
        pair(tmp_path, f"images/x{seed}.png", f"masks/x{seed}.png", seed)
    error = refused(tmp_path, classes=None)
    assert "do not say what their classes are called" in error.cause
    assert "data.classes" in error.cure
