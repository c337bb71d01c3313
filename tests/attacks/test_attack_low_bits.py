"""The last bits of a noised value tell what the noise was added to, if it is added as a float.

Where the noise nearly cancels a value, the sum has the digits of the two large numbers only; where
the value is zero, the noise is small itself and has digits far below. One such sum, which noise
makes of one value in 2^29, says with certainty that the value was zero (Mironov 2012).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedsight.core.types import Payload
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms import local
from fedsight.privacy.mechanisms.local import Local

NEAR, MANY = 2.0**-30, 4096
VALUE, CLIP = 0.5, 64.0


class Close:
    """Noise as it is when it lies so close to `middle` that nobody could expect it in a test."""

    def __init__(self, middle: float) -> None:
        self._middle = middle

    def __call__(self, *path: object, values: object = ()) -> Close:
        return self

    def normal(self, size: int, deviation: float) -> Tensor:
        draws = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return self._middle + NEAR * (2 * draws - 1)


def as_floats(values: Tensor, noise: Tensor, deviation: float) -> Tensor:
    """The weakened build."""
    return (values.double() + noise).float()


def telling(update: Payload, middle: float) -> int:
    """How many released values an update that is not zero cannot have made."""
    noise: Callable[..., Close] = Close(middle)
    mechanism = Local(noise_multiplier=1.0, clip=CLIP)
    released = mechanism.release(update, {}, Plan(1, None, 1), "a", noise)["delta"].double()  # type: ignore[arg-type]
    fine = released * 2.0**54  # the noise and the update are multiples of 2^-54
    return int((fine != fine.round()).sum())


def updates() -> tuple[Payload, Payload]:
    """One that is zero, and one of the same value everywhere, within the clip."""
    return {"delta": torch.zeros(MANY)}, {"delta": torch.full((MANY,), VALUE)}


def test_low_bits_say_for_certain_that_a_value_was_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "added", as_floats)
    nothing, value = updates()
    assert telling(nothing, 0.0) > 100
    assert telling(value, -VALUE) == 0


def test_on_a_grid_they_say_nothing() -> None:
    nothing, value = updates()
    assert telling(nothing, 0.0) == telling(value, -VALUE) == 0
