"""The bound that noise is measured by, and where noise comes from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsight.core.errors import SiteError, StoreError
from fedsight.core.fixedpoint import FRACTION_BITS, encode
from fedsight.privacy.clip import clip, cut, flat, norm
from fedsight.privacy.noise import Noise, secret_at

VECTORS = arrays.arrays(
    np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32, allow_nan=False)
)


@given(VECTORS, VECTORS, st.floats(1e-3, 1e3))
def test_no_payload_is_longer_than_the_clip_not_even_after_rounding(
    one: np.ndarray, other: np.ndarray, most: float
) -> None:
    payload = {"delta": torch.from_numpy(one), "control": torch.from_numpy(other)}
    clipped = clip(payload, most, "a")
    assert norm(clipped, "a") <= most
    integers = flat({name: encode(part) for name, part in clipped.items()}).double()
    assert float(torch.linalg.vector_norm(integers)) / 2**FRACTION_BITS <= most
    direction = flat(payload).double() @ flat(clipped).double()
    long = norm(payload, "a") * norm(clipped, "a")
    assert float(direction) == pytest.approx(long, rel=1e-4, abs=1e-12)


def test_what_is_within_the_clip_stays_bit_for_bit() -> None:
    payload = {"delta": torch.tensor([0.3, -0.4]), "control": torch.zeros(3)}
    assert all(torch.equal(clip(payload, 1.0, "a")[k], payload[k]) for k in payload)
    nothing = {"delta": torch.zeros(4)}
    assert torch.equal(clip(nothing, 1.0, "a")["delta"], torch.zeros(4))


def test_all_parts_are_clipped_together() -> None:
    payload = {"delta": torch.tensor([3.0]), "control": torch.tensor([4.0])}
    clipped = clip(payload, 1.0, "a")
    assert float(clipped["delta"]) == pytest.approx(0.6, abs=1e-5)
    assert float(clipped["control"]) == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(wrong: float) -> None:
    with pytest.raises(SiteError, match="site 'a'"):
        clip({"delta": torch.tensor([1.0, wrong])}, 1.0, "a")


def test_flat_and_cut_are_inverse() -> None:
    parts = {"delta": torch.arange(3.0), "control": torch.arange(2.0)}
    again = cut(flat(parts), parts)
    assert again.keys() == parts.keys()
    assert all(torch.equal(again[name], parts[name]) for name in parts)


def test_noise_hangs_on_its_secret_its_path_and_what_it_disturbs() -> None:
    value = torch.arange(3.0)
    one = Noise(1, "round", 3, values=[value]).normal(8)
    assert torch.equal(one, Noise(1, "round", 3, values=[value]).normal(8))
    for other in (
        Noise(2, "round", 3, values=[value]),
        Noise(1, "round", 4, values=[value]),
        Noise(1, "round", "3", values=[value]),
        Noise(1, "round", 3, values=[value + 1e-6]),
        Noise(1, "round", 3, values=[value, value]),
        Noise(1, "round", 3),
    ):
        assert not torch.isclose(one, other.normal(8)).any()


def test_noise_is_gaussian() -> None:
    from scipy import stats

    found = Noise(0, "a").normal(200_001, 2.0).numpy()
    assert len(found) == 200_001
    assert stats.kstest(found / 2.0, "norm").pvalue > 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    assert np.abs(found).max() > 7.5


def test_a_secret_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    secret = secret_at(path)
    assert secret == secret_at(path)
    assert secret.bit_length() > 200
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret != secret_at(tmp_path / "other.key")
    assert {one.name for one in tmp_path.iterdir()} == {"noise.key", "other.key"}


def test_a_secret_that_others_may_read_or_that_is_torn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    secret_at(path)
    path.chmod(0o640)
    with pytest.raises(StoreError, match="mode 640"):
        secret_at(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(StoreError, match="5 bytes"):
        secret_at(path)
    with pytest.raises(StoreError, match="cannot write"):
        secret_at(tmp_path / "nowhere" / "noise.key")
