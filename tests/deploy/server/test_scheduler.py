"""What a chain of jobs takes for the end of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsight.coordinator.store import RunStore
from fedsight.deploy.server.job import OUTCOME
from fedsight.deploy.server.scheduler import _Chain


def test_the_word_of_an_earlier_coordinator_does_not_count(tmp_path: Path) -> None:
    nothing: Any = None
    chain = _Chain(nothing, nothing, RunStore(tmp_path), (), print)
    assert chain._outcome() is None
    for number, told in ((chain._number - 1, False), (chain._number, True)):
        RunStore(tmp_path).write_json(OUTCOME, {"number": number, "state": "finished"})
        assert (chain._outcome() is not None) is told
