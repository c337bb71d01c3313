"""A small file becomes gigabytes while its pixels are computed: many zeros compress well."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from fedsight.data.images import pixels
from fedsight.data.images.pixels import Pixels, read_pixels

SIDE = 1200  # pixels


def naive_on_black(a: Pixels) -> Pixels:
    """As it was: all values at once, in 64 bits, several times."""
    full = np.iinfo(a.dtype).max
    wide = a.astype(np.uint64)
    return ((wide[..., :-1] * wide[..., -1:] + full // 2) // full).astype(a.dtype)


def naive_deep(values: Pixels, top: int) -> Pixels:
    """The same for 16-bit PPM."""
    wide = (values.astype(np.uint64) * 65535 + top // 2) // top
    return np.minimum(wide, 65535).astype(np.uint16)


def peak(work: Callable[[], Pixels]) -> float:
    """The most memory that `work` takes, over the size of its result."""
    tracemalloc.start()
    size = work().nbytes
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / size


def ppm(values: Pixels, top: int = 65535) -> bytes:
    """A 16-bit colour PPM file of [h, w, 3]."""
    return (
        f"P6\n{values.shape[1]} {values.shape[0]}\n{top}\n".encode()
        + values.astype(">u2").tobytes()
    )


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_BLOCK", 1 << 12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blending_takes_little_more_than_its_result(dtype: type[np.generic]) -> None:
    image = np.zeros((SIDE, SIDE, 4), dtype)
    assert peak(lambda: naive_on_black(image)) > 6
    assert peak(lambda: pixels._on_black(image)) < 1.1


@pytest.mark.usefixtures("small_blocks")
def test_deep_colour_takes_little_more_than_its_result() -> None:
    values = np.zeros((SIDE, SIDE, 3), np.uint16)
    data = ppm(values, 1023)
    assert peak(lambda: naive_deep(values, 1023)) > 6
    assert peak(lambda: read_pixels(data, "a.ppm")) < 1.1


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays.arrays(
            dtype, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 4]))
        )
    ),
    st.integers(1, 300),
)
def test_blending_is_what_it_was(image: Pixels, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_BLOCK", block)
        found = pixels._on_black(image)
    assert found.dtype == image.dtype
    assert np.array_equal(found, naive_on_black(image))


@given(
    arrays.arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))),
    st.integers(256, 65535),
    st.integers(1, 80),
)
def test_deep_colour_is_what_it_was(values: Pixels, top: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_BLOCK", block)
        found = read_pixels(ppm(values, top), "a.ppm")
    assert np.array_equal(found, naive_deep(values, top))


def test_the_largest_values_do_not_wrap() -> None:
    image = np.full((1, 1, 4), 65535, np.uint16)
    assert pixels._on_black(image).tolist() == [[[65535] * 3]]
    eight = Image.new("RGBA", (1, 1), (255, 255, 255, 255))
    assert read_pixels(eight, "a.png").tolist() == [[[255] * 3]]
