"""Which tests are slow, by a measurement that is kept in `tests/durations.json`.

`make test-fast` leaves slow tests out, and files that take long begin first (`handout`), so that
no process is left with one at the end. `pytest --measure FILES` measures again, as often as is
worth it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator
from functools import cache
from pathlib import Path

import psutil
import pytest

PATH = Path(__file__).parents[1] / "durations.json"
SLOW = 0.15  # seconds of computing, for all parameters of a test together


def name_of(item: pytest.Item) -> str:
    """The name of a test without its parameters."""
    return item.nodeid.partition("[")[0]


def file_of(name: str) -> str:
    """The file that a test is in."""
    return name.partition("::")[0]


@cache
def measured() -> dict[str, float]:
    """Seconds of the slow tests by name; a test that is not there is quick, or new."""
    found: dict[str, float] = json.loads(PATH.read_text())
    return found


@cache
def of_files() -> dict[str, float]:
    """Seconds of the slow tests of each file that has any."""
    found: dict[str, float] = defaultdict(float)
    for name, seconds in measured().items():
        found[file_of(name)] += seconds
    return dict(found)


class Measurement:
    """The plugin of `pytest --measure`: notes the computing time of each test, in this process and
    in those that it has started."""

    def __init__(self, config: pytest.Config) -> None:
        """UsageError for a run in which not all tests of a file take part, or not in this process:
        the others' entries would be lost."""
        options = ("markexpr", "keyword", "deselect", "maxfail", "lf")
        part = any(config.getoption(name, None) for name in options)
        if part or any("::" in name for name in config.args):
            raise pytest.UsageError("--measure takes whole files: no ::, -m, -k, -x or the like")
        if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
            raise pytest.UsageError("--measure takes one process: leave out -n")
        self.seconds: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fixtures count for the test that needs them first."""
        began = _computed()
        try:
            return (yield)
        finally:
            self.seconds[name_of(item)] += _computed() - began

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write down the slow ones, in place of those of the same files."""
        if exitstatus != pytest.ExitCode.OK:  # tests that failed may have ended early
            return
        files = {file_of(name) for name in self.seconds}
        kept = {name: s for name, s in measured().items() if file_of(name) not in files}
        slow = {name: round(s, 2) for name, s in self.seconds.items() if s >= SLOW}
        PATH.write_text(json.dumps(kept | slow, indent=1, sort_keys=True) + "\n")


def _computed() -> float:
    """Seconds of computing of this process, and of all that it has started."""
    own = psutil.Process()
    total = 0.0
    for one in (own, *own.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
