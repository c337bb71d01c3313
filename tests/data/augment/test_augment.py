"""Augmentations: what each does, and that its generator alone decides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from fedsight.core.errors import ConfigError
from fedsight.core.part_lists import written
from fedsight.core.rng import generator
from fedsight.data.augment import augmix
from fedsight.data.augment.base import Mixture, augment, augmentations, read
from fedsight.data.augment.crop import Crop
from fedsight.data.augment.cutmix import CutMix, paste, rectangle
from fedsight.data.augment.erase import Erase
from fedsight.data.augment.mixup import Mixup, share
from fedsight.data.augment.randaugment import OPERATIONS

IMAGES = torch.rand(12, 3, 17, 9, generator=generator(3)) * 0.8 + 0.1
NAMES = augmentations.names()


def made(*chosen: Any, x: Tensor = IMAGES, seed: int = 0) -> Tensor:
    return augment(x, read(list(chosen)), generator(seed))[0]


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_images_by_its_generator_alone(name: str) -> None:
    before, state = IMAGES.clone(), torch.get_rng_state()
    found = made(name)
    assert torch.equal(IMAGES, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.shape, found.dtype) == (IMAGES.shape, torch.float32)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, IMAGES)
    assert torch.equal(found, made(name))
    assert not torch.equal(found, made(name, seed=1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_it_takes_the_numbers_of_channels_that_it_says(name: str, channels: int) -> None:
    x = torch.rand(3, channels, 12, 10, generator=generator(1))
    if augmentations.get(name).coloured and channels not in (1, 3):
        return  # `check` refuses it: tests/program/test_recipe.py
    for seed in range(8):
        assert made(name, x=x, seed=seed).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_pixel_and_no_image_at_all_are_images_too(name: str) -> None:
    for shape in ((2, 1, 1, 1), (0, 3, 8, 8)):
        x = torch.rand(shape, generator=generator(1))
        assert made(name, x=x).shape == shape


def test_they_do_what_they_are_called() -> None:
    flipped = made("flip")
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, IMAGES, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < len(IMAGES)
    dot = torch.zeros(40, 1, 17, 17)
    dot[:, 0, 8, 8] = 1
    moved = made("shift", x=dot).nonzero()[:, 2:]
    assert len(moved) == 40
    assert len({tuple(place) for place in moved.tolist()}) > 10
    assert (moved - 8).abs().max() == 2
    factors = made("brightness", x=torch.full((200, 1, 1, 1), 0.5)) / 0.5
    assert 0.8 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2


def test_brightness_has_the_reach_that_is_set() -> None:
    grey = torch.full((400, 1, 1, 1), 0.5)
    factors = made({"name": "brightness", "darkest": 0.2, "brightest": 1.0}, x=grey) / 0.5
    assert 0.2 <= factors.min() < 0.22
    assert 0.98 < factors.max() <= 1


def test_a_turn_keeps_the_distance_from_the_centre_and_the_angle_that_is_set() -> None:
    dots = torch.zeros(200, 1, 41, 41)
    dots[:, 0, 20, 38] = 1
    found = made({"name": "turn", "degrees": 30}, x=dots)
    steps = torch.arange(41.0) - 20
    weight = found[:, 0] / found[:, 0].sum((1, 2), keepdim=True)
    down, right = ((weight * axis).sum((1, 2)) for axis in (steps[:, None], steps[None]))
    angles = torch.atan2(down, right).rad2deg()
    torch.testing.assert_close(
        (down**2 + right**2).sqrt(), torch.full((200,), 18.0), atol=0.3, rtol=0
    )
    assert angles.abs().max() <= 30.5
    assert angles.min() < -25
    assert angles.max() > 25
    torch.testing.assert_close(made({"name": "turn", "degrees": 0}), IMAGES)


def test_shrinking_takes_detail_and_nothing_else() -> None:
    half = made("shrink", x=torch.rand(300, 1, 32, 32, generator=generator(1)))
    flat = half.flatten(1).std(1)
    assert 0.4 < (flat < 0.25).float().mean() < 0.6  # noise is averaged away in every second image
    even = torch.full((20, 1, 9, 7), 0.3)
    torch.testing.assert_close(made({"name": "shrink", "probability": 1}, x=even), even)
    assert torch.equal(made({"name": "shrink", "probability": 0}), IMAGES)
    whole = made({"name": "shrink", "probability": 1, "smallest": 1})
    torch.testing.assert_close(whole, IMAGES)


def test_erasing_leaves_out_a_rectangle_of_the_area_that_is_set() -> None:
    x = torch.ones(300, 1, 32, 32)
    gone = made("erase", x=x) == 0
    hit = gone.flatten(1).any(1)
    assert 0.4 < hit.float().mean() < 0.6
    for one in gone[hit][:, 0]:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
        assert 0.01 < one.float().mean() < 0.36
        assert max(rows / columns, columns / rows) < 4
    assert torch.equal(augment(x, [Erase(probability=0.0)], generator(0))[0], x)


def test_a_crop_of_everything_is_the_image() -> None:
    whole = Crop(smallest=1.0, elongation=1.0)
    x = IMAGES[:, :, :9]
    torch.testing.assert_close(augment(x, [whole], generator(0))[0], x)


def test_a_crop_enlarges_a_part() -> None:
    ramp = torch.linspace(0, 1, 32).expand(50, 1, 32, 32).contiguous()
    found = made("crop", x=ramp)
    reach = found.amax((1, 2, 3)) - found.amin((1, 2, 3))
    assert reach.min() < 0.5
    assert bool((found.diff(dim=3) >= -1e-6).all())


def test_without_any_images_stay_and_several_go_in_order() -> None:
    assert made() is IMAGES
    draws = generator(0)
    by_hand = augment(IMAGES, read(["erase"]), draws)[0]
    by_hand = augment(by_hand, read(["brightness"]), draws)[0]
    assert torch.equal(made("erase", "brightness"), by_hand)


# -- RandAugment -----------------------------------------------------------------------------------

THEIRS = {
    "identity": "Identity",
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateX",
    "translate y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterise": "Posterize",
    "solarise": "Solarize",
    "auto-contrast": "AutoContrast",
    "equalise": "Equalize",
}


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("strength", [0, 5, 9, 17, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str, strength: int, negative: bool) -> None:
    theirs = v2.RandAugment()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
    found = magnitudes(31, 17, 9)
    value = 0.0 if found is None else float(found[strength]) * (-1 if signed and negative else 1)
    expected = theirs._apply_image_or_video_transform(
        IMAGES[0], THEIRS[name], value, interpolation=theirs.interpolation, fill=theirs._fill
    )
    ours = OPERATIONS[name](IMAGES[0], strength / 30, negative)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_all_of_torchvisions_operations_are_there() -> None:
    assert set(THEIRS) == set(OPERATIONS)
    assert set(THEIRS.values()) == set(v2.RandAugment._AUGMENTATION_SPACE)


# -- AugMix ----------------------------------------------------------------------------------------


def test_chains_that_change_nothing_leave_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of image and chains sum to 1."""
    monkeypatch.setattr(augmix, "USED", ("identity",))
    torch.testing.assert_close(made("augmix"), IMAGES)


def test_the_share_of_the_image_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beta(1, 1): seen where chains give black images."""
    monkeypatch.setattr(augmix, "USED", ("black",))
    monkeypatch.setitem(augmix.OPERATIONS, "black", lambda image, strength, sign: 0 * image)
    white = torch.ones(2000, 1, 1, 1)
    shares = made("augmix", x=white).flatten().sort().values
    even = (torch.arange(2000) + 0.5) / 2000
    assert float((shares - even).abs().max()) < 0.04  # Kolmogorov-Smirnov, p = 0.003


def test_no_operation_resembles_a_corruption_that_is_measured() -> None:
    assert set(augmix.USED) < set(OPERATIONS)
    assert not set(augmix.USED) & {"brightness", "colour", "contrast", "sharpness"}


# -- mixed images ----------------------------------------------------------------------------------

LABELS = torch.arange(12) % 4
SOFT = torch.nn.functional.one_hot(LABELS, 4).float()


def theirs_given(transform: Any, **params: Any) -> tuple[Tensor, Tensor]:
    """Images and targets as torchvision mixes them, with its draws in `params`."""
    params = {"labels": LABELS, "batch_size": 12, **params}
    return transform.transform(IMAGES, params), transform.transform(LABELS, params)


@pytest.mark.parametrize("own", [1.0, 0.7, 0.5])
def test_mixup_is_torchvisions(own: float) -> None:
    x, y = theirs_given(v2.MixUp(num_classes=4), lam=own)
    torch.testing.assert_close(Mixture(own).of(IMAGES), x)
    torch.testing.assert_close(Mixture(own).of(SOFT), y)


@pytest.mark.parametrize(("centre", "kept"), [((8, 4), 0.5), ((0, 8), 0.1), ((16, 0), 0.9)])
def test_cutmix_is_torchvisions(centre: tuple[int, int], kept: float) -> None:
    top, bottom, left, right = part = rectangle(17, 9, centre, kept)
    own = 1 - (bottom - top) * (right - left) / (17 * 9)
    x, y = theirs_given(v2.CutMix(num_classes=4), box=(left, top, right, bottom), lam_adjusted=own)
    found, mixture = paste(IMAGES, part)
    assert torch.equal(found, x)
    torch.testing.assert_close(mixture.of(SOFT), y)


def test_targets_are_mixed_like_the_images() -> None:
    """An image that is its own target shows it."""
    for kind in (Mixup(alpha=1.0), CutMix()):
        flags = torch.eye(12)[:, :, None, None].expand(12, 12, 16, 16).contiguous()
        x, mixture = augment(flags, [kind], generator(2))
        assert mixture is not None
        torch.testing.assert_close(x.mean((2, 3)), mixture.of(torch.eye(12)))


def test_mixup_with_alpha_near_0_leaves_images_and_targets_bit_for_bit() -> None:
    x, mixture = augment(IMAGES, [Mixup(alpha=1e-9)], generator(0))
    assert mixture is not None
    assert torch.equal(x, IMAGES)
    assert torch.equal(mixture.of(SOFT), SOFT)


def test_weights_have_the_moments_of_beta() -> None:
    draws = generator(5)
    for alpha in (0.2, 1.0, 4.0):
        found = torch.tensor([share(alpha, draws) for _ in range(3000)])
        assert abs(float(found.mean()) - 0.5) < 0.03
        assert float(found.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixing_comes_last_and_one_of_several_is_drawn() -> None:
    order = made("flip", "mixup")
    assert torch.equal(made("mixup", "flip"), order)
    both = [made("mixup", "cutmix", seed=seed) for seed in range(12)]
    pasted = [bool((one == IMAGES).any()) for one in both]  # a mean equals its image nowhere
    assert 0 < sum(pasted) < 12


def test_a_lone_image_is_mixed_with_nothing() -> None:
    x, mixture = augment(IMAGES[:1], read(["mixup"]), generator(0))
    assert mixture is None
    assert torch.equal(x, IMAGES[:1])


# -- in a config -----------------------------------------------------------------------------------


def test_a_list_of_names_and_tables_is_read_and_written() -> None:
    listed = ["flip", {"name": "mixup", "alpha": 0.3}]
    flip, mixup = read(listed)
    assert math.isclose(mixup.alpha, 0.3)
    assert written([flip, mixup]) == listed
    assert read(written(read(NAMES))) == read(NAMES)


@pytest.mark.parametrize(
    ("item", "where", "cause", "cure"),
    [
        ("flp", "train.augment.0", "no augmentation 'flp'", "did you mean 'flip'?"),
        ({"name": "mixup", "alpah": 1}, "train.augment.0.alpah", "no such setting", "'alpha'"),
        ({"name": "flip", "p": 1}, "train.augment.0.p", "no such setting", "leave it out"),
        ({"name": "mixup", "alpha": -1}, "train.augment.0.alpha", "more than 0", "0.2"),
        ({"alpha": 1}, "train.augment.0", "table with its name", "write augment ="),
        (3, "train.augment.0", "3 is neither", "write augment ="),
    ],
)
def test_a_wrong_item_is_named_with_its_cure(item: Any, where: str, cause: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read([item])
    (problem,) = caught.value.problems
    assert problem.where == where
    assert cause in problem.cause
    assert cure in problem.cure
