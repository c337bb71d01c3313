"""FLARE looks sooner whether something has happened; other waits stay as they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import runpy
import sys
import time
from pathlib import Path

import pytest
from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.client import communicator

from fedsight.deploy.flare import waits

TABLE = [(entry, name) for entry, modules in waits.SHORTER.items() for name in modules]


def sleeps(name: str) -> set[float]:
    """The seconds that a module sleeps by a fixed number."""
    source = inspect.getsource(importlib.import_module(name))
    calls = [
        one
        for one in ast.walk(ast.parse(source))
        if isinstance(one, ast.Call) and ast.unparse(one.func) == "time.sleep"
    ]
    return {float(one.args[0].value) for one in calls if isinstance(one.args[0], ast.Constant)}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long Python's `time` was asked to sleep; FLARE's modules are put back in the end."""
    for _, name in TABLE:
        monkeypatch.setattr(importlib.import_module(name), "time", time)
    monkeypatch.setattr(MainProcessMonitor, "run", MainProcessMonitor.run)
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.mark.parametrize(("entry", "name"), TABLE)
def test_flare_sleeps_as_long_as_the_table_says(entry: str, name: str) -> None:
    wait = waits.SHORTER[entry][name]
    assert wait.usual in sleeps(name)
    assert 0 < wait.shorter < wait.usual


@pytest.mark.parametrize(("entry", "name"), TABLE)
def test_a_module_sleeps_shorter_and_measures_time_as_before(
    entry: str, name: str, slept: list[float]
) -> None:
    waits.shorten(entry)
    module, wait = importlib.import_module(name), waits.SHORTER[entry][name]
    module.time.sleep(wait.usual)
    module.time.sleep(0.123)
    assert slept == [wait.shorter, 0.123]
    assert module.time.monotonic is time.monotonic
    assert communicator.time is time  # heartbeats are as rare as before


def test_the_module_that_a_process_runs_sees_it_too(
    slept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FLARE's modules do: it is run again as `__main__`, and imports `time` itself."""
    (tmp_path / "entry.py").write_text(
        "import time\n"
        "from nvflare.fuel.f3.mpm import MainProcessMonitor\n"
        "def main():\n"
        "    time.sleep(1.0)\n"
        "if __name__ == '__main__':\n"
        "    MainProcessMonitor.run(main_func=main)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MainProcessMonitor, "run", lambda main_func: main_func())
    monkeypatch.setattr(waits, "SHORTER", {"entry": {"entry": waits.Wait(1.0, 0.2)}})
    runpy.run_module("entry", run_name="__main__", alter_sys=True)
    waits.shorten("entry")
    runpy.run_module("entry", run_name="__main__", alter_sys=True)
    sys.modules.pop("entry")
    assert slept == [1.0, 0.2]


def test_who_is_not_answered_soon_is_asked_as_seldom_as_ever(slept: list[float]) -> None:
    clock, always = waits.Clock(waits.Wait(0.5, 0.1, 2)), waits.Clock(waits.Wait(1.0, 0.2, None))
    for _ in range(4):
        clock.sleep(0.5)
        always.sleep(1.0)
    assert slept[::2] == [0.1, 0.1, 0.5, 0.5]
    assert slept[1::2] == [0.2] * 4


def test_with_another_version_of_flare_a_process_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wait = waits.Wait(1.0, 0.1)
    monkeypatch.setattr(waits, "SHORTER", {"json": {"json": wait, "json.moved": wait}})
    waits.shorten("json")
    assert "module 'json' has no attribute 'time'" in caplog.text
    assert "No module named 'json.moved'" in caplog.text
