"""What a run says of itself while it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from site_services import Clock

from fedsight.coordinator import live
from fedsight.coordinator.callbacks import ReplyArrived, RoundBegan
from fedsight.coordinator.live import LIVE, LONG_ENOUGH, REFUSALS, Live
from fedsight.engines.base import Accepted, Rejected


def told(one: Live, folder: Path) -> dict[str, str]:
    one._write()
    found: dict[str, str] = json.loads((folder / LIVE).read_text())["refused"]
    return found


def test_a_refusal_is_quoted_long_enough_however_short_its_round_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    monkeypatch.setattr(clock, "time", clock.monotonic, raising=False)
    (tmp_path / "run.json").write_text("{}")
    one, sites = Live(tmp_path, stops=False), ["a", "b"]
    one.on(RoundBegan(1, sites))
    one.on(ReplyArrived(Rejected(0, "a", "killed")))
    one.on(ReplyArrived(Accepted(1, "b", 1, 0.5)))
    one.on(RoundBegan(2, sites))  # nobody has looked yet
    assert told(one, tmp_path) == {"a": "killed"}
    clock.sleep(LONG_ENOUGH / 2)
    one.on(ReplyArrived(Rejected(1, "b", "hung")))
    one.on(ReplyArrived(Rejected(0, "a", "killed again")))
    clock.sleep(LONG_ENOUGH)
    one.on(ReplyArrived(Rejected(1, "b", "hung again")))
    assert told(one, tmp_path) == {"a": "killed again", "b": "hung again"}, "of this round"
    one.on(RoundBegan(3, sites))
    assert told(one, tmp_path) == {"a": "killed again", "b": "hung again"}
    clock.sleep(LONG_ENOUGH / 2)
    one.on(RoundBegan(4, sites))
    assert told(one, tmp_path) == {"b": "hung again"}
    clock.sleep(LONG_ENOUGH)
    one.on(RoundBegan(5, sites))
    assert told(one, tmp_path) == {}


def test_few_refusals_are_quoted(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    one = Live(tmp_path, stops=False)
    for round in (1, 2):
        one.on(RoundBegan(round, ["a"]))
        for number in range(REFUSALS + 5):
            one.on(ReplyArrived(Rejected(number, f"site-{number}", f"in round {round}")))
    found = told(one, tmp_path)
    assert len(found) == REFUSALS
    assert set(found.values()) == {"in round 2"}
