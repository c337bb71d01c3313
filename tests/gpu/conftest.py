"""Tests of a real accelerator: collected where there is one, or on the device that is named.

`pytest tests/gpu --accelerator cpu` runs the same code on the CPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without an accelerator there is nothing to test here."""
    named = config.getoption("accelerator") is not None
    return None if named or torch.cuda.is_available() else True


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device to test, as `speed.device` names it."""
    return request.config.getoption("accelerator") or "cuda:0"
