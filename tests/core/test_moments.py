"""A moment is so long ago as time has passed, whatever the clock says by then."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from fedsight.core import moments
from fedsight.core.moments import Moment


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    before = Moment.now()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert 0 <= before.ago < 60
    assert abs(Moment.now().wall - before.wall - jump) < 60


def test_another_process_counts_the_same_seconds() -> None:
    code = "from fedsight.core.moments import Moment; m = Moment.now(); print(m.ticks, m.boot)"
    began = Moment.now()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ticks, boot = told.stdout.split()
    assert boot == began.boot
    assert began.ticks <= float(ticks) <= Moment.now().ticks


def test_after_a_start_of_the_machine_the_time_of_day_decides() -> None:
    before = Moment.now()
    other = {**asdict(before), "wall": before.wall - 100, "boot": "another start"}
    assert 100 <= Moment(**other).ago < 160
    ahead = {**asdict(before), "wall": before.wall - 100, "ticks": before.ticks + 1e6}
    assert 100 <= Moment(**ahead).ago < 160, "a machine that does not name its starts"


def test_where_starts_have_no_name_seconds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_boot", lambda: "")
    monkeypatch.setattr(moments, "time", SimpleNamespace(time=lambda: 5.0, monotonic=lambda: 9.0))
    assert Moment(0.0, 2.0, "").ago == 7.0
