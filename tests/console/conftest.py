"""A served console, with somebody who is logged in and somebody who is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from consoles import Client, served


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Client]:
    """Somebody without the token."""
    root = tmp_path / "runs"
    root.mkdir()
    with served(root) as client:
        yield client


@pytest.fixture
def client(outside: Client) -> Client:
    """The user, logged in."""
    outside.enter()
    return outside


@pytest.fixture
def make_run(outside: Client) -> Callable[..., Path]:
    """Makes a run folder as a run writes it."""

    def make(place: str, rounds: int = 2, **facts: Any) -> Path:
        folder = outside.console.root / place
        folder.mkdir(parents=True)
        site = {"name": "site-00", "samples": 8, "labels": [4, 4]}
        told = {
            "name": place, "created": "2026-01-02T03:04:05+00:00", "rounds": 4, "population": 1,
            "headline": "Accuracy", "algorithm": "fedavg", "classes": ["a", "b"], "sites": [site],
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(told | facts))
        (folder / "run.toml").write_text('name = "made"\n')
        lines = [
            {
                "round": at, "score": 0.5 + at / 100, "loss": 1.0, "measured_on": "test part",
                "rejected": {}, "bytes_up": 10, "bytes_down": 20, "seconds": 1.0, "sites": [],
            }
            for at in range(1, rounds + 1)
        ]  # fmt: skip
        (folder / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        return folder

    return make
