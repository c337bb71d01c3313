"""FLARE looks sooner whether something has happened; other waits stay as they are."""

from __future__ import annotations

import ast
import inspect
import time
from types import ModuleType

import pytest
from nvflare.private.fed.client import communicator

from fedsight.deploy.flare import waits


def sleeps(module: ModuleType) -> set[float]:
    """The seconds that the module sleeps by a fixed number."""
    calls = [
        one
        for one in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(one, ast.Call) and ast.unparse(one.func) == "time.sleep"
    ]
    return {float(one.args[0].value) for one in calls if isinstance(one.args[0], ast.Constant)}


@pytest.mark.parametrize("module", waits.SHORTER, ids=lambda module: module.__name__)
def test_flare_sleeps_as_long_as_the_table_says(module: ModuleType) -> None:
    assert waits.SHORTER[module].keys() <= sleeps(module)
    assert all(0 < shorter < fixed for fixed, shorter in waits.SHORTER[module].items())


@pytest.mark.parametrize("module", waits.SHORTER, ids=lambda module: module.__name__)
def test_a_module_sleeps_shorter_and_measures_time_as_before(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in waits.SHORTER:
        monkeypatch.setattr(one, "time", time)  # put back in the end
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    waits.shorten()
    for fixed in waits.SHORTER[module]:
        module.time.sleep(fixed)
    module.time.sleep(0.123)
    assert slept == [*waits.SHORTER[module].values(), 0.123]
    assert module.time.monotonic is time.monotonic
    assert communicator.time is time  # heartbeats are as rare as before


def test_a_module_that_sleeps_no_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("without")
    monkeypatch.setattr(waits, "SHORTER", {module: {1.0: 0.1}})
    with pytest.raises(AttributeError, match="time"):
        waits.shorten()
