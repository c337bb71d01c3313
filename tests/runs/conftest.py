"""Parts of these tests' own do not stay registered for the tests of other files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsight.core.registry import LOG
from fedsight.program import plugins


@pytest.fixture(scope="module", autouse=True)
def _own_parts_go() -> Iterator[None]:
    yield
    plugins.parse([], Path.cwd())
    for added in [one for one in LOG if not one.cls.__module__.startswith("fedsight.")]:
        added.registry.remove(added.name)
        LOG.remove(added)
