"""Phases that take long are shown: soon, seldom, and not where they are over at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import own_folders
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.progress import listening, progress
from fedsight.data.base import sources
from fedsight.data.images import disk
from fedsight.runs.phases import EVERY, QUIET, Phases


class _Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_gets_a_line_soon_then_seldom_and_one_at_the_end() -> None:
    said: list[str] = []
    clock = _Clock()
    phases = Phases(said.append, clock=clock)
    for done in range(1, 2001):
        phases("images read", done, 2000)
        clock.now += 0.01
    assert said[0] == f"images read: {round(QUIET / 0.01) + 1} of 2,000"
    assert said[-1] == "images read: 2,000 of 2,000"
    assert len(said) == 2 + int((20 - QUIET) / EVERY)


@given(steps=st.lists(st.floats(0, 0.001), min_size=1, max_size=50), total=st.integers(1, 50))
def test_what_is_over_at_once_is_not_mentioned(steps: list[float], total: int) -> None:
    said: list[str] = []
    clock = _Clock()
    phases = Phases(said.append, clock=clock)
    for done, step in enumerate(steps[:total], 1):
        phases("images read", done, total)
        clock.now += step
    assert said == []


def test_a_phase_that_comes_again_must_take_longer_to_be_mentioned() -> None:
    said: list[str] = []
    clock = _Clock()
    phases = Phases(said.append, clock=clock)
    for _ in range(3):
        for done in range(1, 5):
            phases("measured", done, 4)
            clock.now += QUIET
    assert said == ["measured: 2 of 4", "measured: 4 of 4"]


def test_reading_images_says_how_far_it_is(tmp_path: Path) -> None:
    images = own_folders.class_folders(tmp_path / "mine", count=5)
    heard: list[tuple[str, int, int]] = []
    source = sources.get("folder")(path=images, size=8)
    with listening(lambda *one: heard.append(one)):
        opened = source.open()
    source.open()  # nobody listens
    parts = [len(opened.train), len(opened.test)]
    assert heard == [("images read", n, size) for size in parts for n in range(1, size + 1)]
    progress("nothing", 1, 1)


def test_images_are_decoded_on_all_cores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images wait for each other, which one thread could not do."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    together = threading.Barrier(2, timeout=30)

    def load(index: int) -> int:
        together.wait()
        return index

    assert list(disk.ahead(load, 4)) == [0, 1, 2, 3]  # type: ignore[arg-type, comparison-overlap]


def test_a_pipe_shows_that_images_are_being_read(tmp_path: Path) -> None:
    """The whole command, with a clock on which each image takes a second."""
    images = own_folders.class_folders(tmp_path / "mine", count=5)
    text = (
        "import itertools, sys\n"
        "ticks = itertools.count()\n"
        "import fedsight.runs.phases as p; usual = p.Phases\n"
        "p.Phases = lambda say, bars: usual(say, bars, lambda: float(next(ticks)))\n"
        f"sys.argv = ['fedsight', 'data', 'inspect', {str(images)!r}]\n"
        "from fedsight.cli import main; main()"
    )
    made = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "images read: 2 of 12\n" in made.stderr
    assert "images read" not in made.stdout
