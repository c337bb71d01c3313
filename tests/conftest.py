"""What every room's tests may use: a tiny federation, and runs of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
from hypothesis import settings

from fedsight.engine.base import Federation

# Two cores are shared with worker processes, so no example is judged by its time.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("house")


@pytest.fixture(scope="session")
def tiny_federation() -> Callable[..., Federation]:
    """`tiny_federation(train={"lr": 0.1}, algorithm={"name": "fedprox"}, ...)`: 3 sites of 40
    images [1, 14, 14], 60 test images, a small network, 2 rounds; sections as in a config file."""
    return tiny.federation
