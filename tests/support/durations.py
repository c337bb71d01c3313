"""Which tests are slow, by a measurement that is kept in `tests/durations.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "durations.json"
SLOW = 0.25  # seconds of computing, for all parameters of a test together


def name_of(item: pytest.Item) -> str:
    """The name of a test without its parameters."""
    return item.nodeid.partition("[")[0]


@cache
def measured() -> dict[str, float]:
    """Seconds of the slow tests by name; a test that is not there is quick, or new."""
    found: dict[str, float] = json.loads(PATH.read_text())
    return found


class Measurement:
    """The plugin of `pytest --measure`: notes the computing time of each test in this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fixtures count for the test that needs them first."""
        began = time.process_time()
        try:
            return (yield)
        finally:
            name = name_of(item)
            spent = time.process_time() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def pytest_sessionfinish(self) -> None:
        """Write down the slow ones."""
        slow = {name: round(s, 2) for name, s in sorted(self.seconds.items()) if s >= SLOW}
        PATH.write_text(json.dumps(slow, indent=1) + "\n")
