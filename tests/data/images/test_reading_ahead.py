"""Images are read in threads, in order, a few ahead of what is asked for, and progress is told."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsight.core.progress import listening
from fedsight.data.base import sources
from fedsight.data.images.disk import ahead


def test_results_come_in_order_whatever_takes_longest() -> None:
    done = [threading.Event() for _ in range(100)]

    def load(index: int) -> int:
        if index % 2 == 0 and index + 1 < 100 and len(os.sched_getaffinity(0)) > 1:
            done[index + 1].wait(5)  # the odd one is ready first
        done[index].set()
        return index

    assert list(ahead(load, 100)) == list(range(100))
    assert list(ahead(load, 0)) == []


def test_nothing_begins_long_after_an_error_or_an_end() -> None:
    begun: list[int] = []

    def load(index: int) -> int:
        begun.append(index)
        if index == 3:
            raise ValueError(index)
        return index

    reading = ahead(load, 10_000)
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(reading)
    assert len(begun) < 200
    stopped = ahead(lambda index: begun.append(-1) or index, 10_000)
    next(stopped)
    stopped.close()
    assert begun.count(-1) < 200


def test_every_core_reads() -> None:
    cores = min(2, len(os.sched_getaffinity(0)))
    meeting = threading.Barrier(cores, timeout=10)
    assert list(ahead(lambda index: meeting.wait() >= 0, 4 * cores)) == [True] * 4 * cores


@pytest.mark.parametrize("keep", [True, False])
def test_each_image_moves_the_progress_on(tmp_path: Path, keep: bool) -> None:
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *said: heard.append(said)):
        sources.get("folder")(path=tmp_path, size=8, in_memory=keep).open()
    read = [said for said in heard if said[0] == "images read"]
    assert read == [
        *(("images read", done, 16) for done in range(1, 17)),
        *(("images read", done, 4) for done in range(1, 5)),
    ]
