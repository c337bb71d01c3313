"""Feature shift: by site, deterministic, and the same in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedsight.data.shift import Shift

X = torch.rand((12, 3, 9, 11), generator=torch.Generator().manual_seed(0))
I = torch.arange(100, 112)  # noqa: E741
KINDS = {"noise": 0.3, "blur": 1.5, "contrast": 0.6, "rotate": 35.0, "invert": 0.8}


def shift(kind: str, strength: float = 0.1) -> Shift:
    options: dict[str, Any] = {"kind": kind, "strength": strength}
    return Shift(**options)


def test_none_and_the_first_site_are_untouched() -> None:
    assert shift("none").apply(X, 3, 4, 0, I) is X
    for kind, strength in KINDS.items():
        assert shift(kind, strength).apply(X, 0, 4, 0, I) is X


@pytest.mark.parametrize("kind", KINDS)
def test_shift_is_pure_and_independent_of_the_batch(kind: str) -> None:
    before = X.clone()
    one = shift(kind, KINDS[kind])
    whole = one.apply(X, 3, 4, 7, I)
    assert torch.equal(X, before)
    assert whole.shape == X.shape
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert not torch.equal(whole, X)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.apply(X[order], 3, 4, 7, I[order]), whole[order])
    for size in (1, 5):
        pieces = [one.apply(X[k : k + size], 3, 4, 7, I[k : k + size]) for k in range(0, 12, size)]
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_grows_with_the_site(kind: str) -> None:
    one = shift(kind, KINDS[kind])
    change = [float((one.apply(X, site, 5, 0, I) - X).abs().mean()) for site in range(5)]
    assert change == sorted(change)
    assert change[4] > change[1] > 0


def test_noise_is_normal_and_its_own_for_seed_site_and_image() -> None:
    grey = torch.full((400, 1, 20, 20), 0.5)
    index = torch.arange(400)
    one = shift("noise", 0.1)
    noise = one.apply(grey, 4, 5, 0, index) - 0.5
    assert abs(float(noise.mean())) < 1e-3
    assert abs(float(noise.std()) - 0.1) < 1e-3
    inside = float((noise.abs() < 0.1).float().mean())
    assert abs(inside - 0.683) < 0.01
    rows = noise.flatten(1)
    assert abs(float(torch.corrcoef(rows[:2])[0, 1])) < 0.2
    assert abs(float((rows[:, 1:] * rows[:, :-1]).mean())) < 2e-4
    half = one.apply(grey, 2, 5, 0, index) - 0.5
    assert abs(float(half.std()) - 0.05) < 1e-3
    assert not torch.allclose(half * 2, noise)
    assert not torch.equal(one.apply(grey, 4, 5, 1, index) - 0.5, noise)


def test_known_values() -> None:
    assert torch.allclose(
        shift("rotate", 90.0).apply(X[:, :, :, :9], 1, 2, 0, I),
        torch.rot90(X[:, :, :, :9], 1, (2, 3)),
        atol=1e-6,
    )
    assert torch.allclose(shift("invert", 1.0).apply(X, 1, 2, 0, I), 1 - X, atol=1e-6)
    assert torch.allclose(
        shift("contrast", 1.0).apply(X, 1, 2, 0, I), torch.full_like(X, 0.5), atol=1e-6
    )
    flat = torch.full((1, 1, 8, 8), 0.3)
    assert torch.allclose(shift("blur", 2.0).apply(flat, 1, 2, 0, I[:1]), flat, atol=1e-6)


def test_strength_has_a_range() -> None:
    for kind, strength in (("noise", 1.1), ("invert", 1.1), ("blur", 33.0), ("rotate", -1.0)):
        with pytest.raises(ValueError, match="strength"):
            shift(kind, strength)
    assert shift("none", 300.0).kind == "none"
