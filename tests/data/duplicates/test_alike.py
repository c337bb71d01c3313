"""The search for images that look alike misses none, and finds little that it should not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fedsight.data.base import ArrayImages, sources
from fedsight.data.duplicates import alike
from fedsight.data.duplicates.alike import ALIKE, joined, sets_alike
from fedsight.data.duplicates.found import copied
from fedsight.data.duplicates.prints import SIDE, looks, prints_of

Pixels = npt.NDArray[np.uint8]


def photograph(seed: int, side: int = 96) -> Pixels:
    """A smooth picture with detail of all sizes [side, side, 3], as photographs have."""
    drawn = torch.Generator().manual_seed(seed)
    layers = [
        functional.interpolate(
            torch.rand(1, 3, k, k, generator=drawn) / k**0.5, side, mode="bilinear"
        )
        for k in (3, 5, 8, 16, 32)
    ]
    values = sum(layers[1:], layers[0])[0]
    values = (values - values.min()) / (values.max() - values.min()) * 200 + 20
    return values.permute(1, 2, 0).to(torch.uint8).numpy()


def encoded(pixels: Pixels, kind: str, **options: int) -> Pixels:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return np.asarray(Image.open(data).convert("RGB"))


def resized(pixels: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


PROMISED: dict[str, Callable[[Pixels], Pixels]] = {
    "PNG": lambda a: encoded(a, "PNG"),
    "JPEG 90": lambda a: encoded(a, "JPEG", quality=90),
    "JPEG 75": lambda a: encoded(a, "JPEG", quality=75),
    "WebP 90": lambda a: encoded(a, "WEBP", quality=90),
    "half the size": lambda a: resized(a, 48),
    "twice the size": lambda a: resized(a, 192),
    "brighter": lambda a: (a.astype(int) + 25).clip(0, 255).astype(np.uint8),
    "darker": lambda a: (a.astype(int) - 20).clip(0, 255).astype(np.uint8),
    "less contrast": lambda a: (a * 0.6 + 40).astype(np.uint8),
    "grey": lambda a: np.repeat(a.mean(2, keepdims=True).astype(np.uint8), 3, axis=2),
}


def network_input(pixels: Pixels, side: int = 32) -> Tensor:
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("kind", PROMISED)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_promised_copies_of_photographs_are_found(kind: str, seed: int) -> None:
    first = photograph(seed)
    others = [network_input(photograph(seed + n)) for n in range(1, 6)]
    both = torch.cat([network_input(first), *others, network_input(PROMISED[kind](first))])
    assert sets_alike(looks(both)).tolist() == [0, 1, 2, 3, 4, 5, 0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 120),
    centres=st.integers(1, 12),
    spread=st.sampled_from([0.0, 0.002, 0.01, 0.05]),
    pairs=st.sampled_from([3, 50, 1 << 20]),
)
def test_the_search_finds_what_comparing_all_with_all_finds(
    seed: int, count: int, centres: int, spread: float, pairs: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    around = torch.rand(centres, 3, 4, 4, generator=drawn)
    chosen = around[torch.randint(centres, (count,), generator=drawn)]
    pixels = functional.interpolate(chosen, SIDE) if count else torch.empty(0, 3, SIDE, SIDE)
    pixels = pixels + spread * torch.rand(pixels.shape, generator=drawn)
    found = looks(pixels / 2)
    same = (found.float() @ found.float().T >= ALIKE).nonzero().numpy()
    expected = joined(np.arange(count), same[:, 0], same[:, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "_PAIRS", pairs)
        got = sets_alike(found)
    # float32 sums may differ in the last bit where a pair is at the limit
    gap = (found.float() @ found.float().T - ALIKE).abs()
    if not bool((gap < 1e-5).any()):
        assert np.array_equal(got, expected)


def test_images_that_show_nothing_are_like_no_other() -> None:
    blank = torch.full((4, 3, 20, 20), 7, dtype=torch.uint8)
    assert sets_alike(looks(blank)).tolist() == [0, 1, 2, 3]
    assert prints_of(blank).blank.all()
    assert len(set(prints_of(blank).digests)) == 1


def test_eight_and_sixteen_bits_have_one_digest() -> None:
    small = torch.randint(0, 256, (3, 1, 9, 9), dtype=torch.uint8)
    large = (small.to(torch.int32) * 257).to(torch.uint16)
    assert prints_of(small).digests == prints_of(large).digests
    assert torch.equal(prints_of(small).looks, prints_of(large).looks)  # type: ignore[arg-type]


def test_false_alarms_on_fashion_mnist_are_as_the_docs_say() -> None:
    opened = sources.get("fashion-mnist-12k")().open()
    assert isinstance(opened.train.images, ArrayImages)
    found = copied(opened)
    assert found is not None
    exact, near = found.duplicates.exact, found.duplicates.near
    assert exact.counts() == dict.fromkeys(exact.counts(), 0)
    sizes = np.bincount(found.near)
    assert (sizes[sizes > 1].sum(), (sizes > 1).sum()) == (111, 46)
    assert (near.copies, near.across_parts, near.two_labels) == (65, 13, 0)
