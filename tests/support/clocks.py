"""A clock that a test sets: the time of day, and the moments that processes measure from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedsight.core import moments


def set_clock(monkeypatch: pytest.MonkeyPatch, now: Callable[[], float]) -> None:
    """From now on time passes as `now` says, for moments too."""
    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr(moments, "time", SimpleNamespace(time=now, monotonic=now))


def heard_ago(path: Path, seconds: float) -> None:
    """Let the moment that a file tells be so long ago."""
    table = json.loads(path.read_text())
    heard = {key: table["heard"][key] - seconds for key in ("wall", "ticks")}
    path.write_text(json.dumps({**table, "heard": {**table["heard"], **heard}}))
