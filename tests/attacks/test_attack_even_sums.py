"""A noised figure that tells the last digit of the sum that the noise was added to.

A contract permits noise of up to a billion times the bound. On a grid of a fixed width such noise
is beyond 2^53, where all float64 are even numbers: then the result is even if the sum was, and odd
if it was not, whatever the epsilon that is stated. Rounding halves to even numbers tells a little
before that.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsight.core.types import Sum
from fedsight.privacy import noised_sums
from fedsight.privacy.noised_sums import GRID, noised

NOISE, SUMS = 1e9, 16


def even(side: int, unit: float) -> float:
    """How often noised sums are even numbers of `unit`, where all sums are if `side` is 0."""
    whole = np.full(20_000, 10 * 2**20 + side, np.float64) * GRID
    sums = {str(name): Sum(whole if name == 0 else whole[:1], 20) for name in range(SUMS)}
    found = noised(sums, dict.fromkeys(sums, 1.0), NOISE)["0"].total
    return float((np.mod(np.asarray(found) / unit, 2) == 0).mean())


def test_on_a_fixed_grid_the_parity_of_the_sum_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noised_sums, "FINEST", 2.0**200)
    assert even(0, GRID) - even(1, GRID) > 0.2


def test_ours_has_a_wider_grid_for_such_noise() -> None:
    unit = GRID * 2.0 ** math.ceil(math.log2(9 * NOISE * math.sqrt(2 * SUMS) / GRID / 2.0**45))
    assert unit > GRID
    for side in (0, 1):
        assert even(side, GRID) == 1.0  # nothing is left of the digits that told it
        assert even(side, unit) == pytest.approx(0.5, abs=0.02)
