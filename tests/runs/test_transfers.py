"""`fedsight plan`: the time that transfers take is that of the bytes a run counts."""

from __future__ import annotations

import json
from typing import Any

import federations
import pytest
from command_line import done, refused

from fedsight.runs.transfers import OWN, chosen, transfers

CODEC: dict[str, Any] = {
    "up": {"steps": ["sign"], "feedback": True},
    "down": {"steps": [{"name": "eden", "bits": 2}]},
}


@pytest.mark.parametrize("sections", [{"codec": CODEC}, {"algorithm": {"name": "scaffold"}}])
def test_bytes_and_times_are_those_of_the_run(sections: dict[str, Any]) -> None:
    of, diary = federations.federation(rounds={"rounds": 3}, **sections), federations.Diary()
    federations.learn(of, diary=diary)
    own = transfers(of, 8e3, 16e3)[0]
    assert own.name == OWN
    assert [3 * own.first, *2 * [3 * own.bytes_down]] == [x["bytes_down"] for x in diary.lines]
    assert 3 * own.bytes_up == diary.lines[0]["bytes_up"]
    up, down = (sum(line[way] / 3 for line in diary.lines) for way in ("bytes_up", "bytes_down"))
    assert own.seconds == pytest.approx(up / 1e3 + down / 2e3)


def test_a_round_waits_for_a_site_that_needs_all_of_the_model() -> None:
    of = federations.federation(codec=CODEC, rounds={"rounds": 3, "cohort": 2})
    own = transfers(of, 8e3, 8e3)[0]
    assert own.bytes_whole == 4 * of.layout.travelling.stop > 3 * own.bytes_down
    assert own.round_seconds == pytest.approx((own.bytes_up + own.bytes_whole) / 1e3)


def test_the_most_faithful_codec_that_is_fast_enough_is_named() -> None:
    found = transfers(federations.federation(rounds={"rounds": 5}), 1e5, 1e5)
    times = [one.seconds for one in found]
    assert times == sorted(times, reverse=True)
    assert chosen(found, times[0]) == found[0]
    for faster, one in zip(found[1:], found, strict=False):
        assert chosen(found, (faster.seconds + one.seconds) / 2) == faster
    assert chosen(found, times[-1] / 2) is None


def test_only_what_masks_allow_is_named_under_masks() -> None:
    plain = {one.name for one in transfers(federations.federation(), 1e6, 1e6)}
    assert not [name for name in plain if name.startswith("masked")]
    secure = federations.federation(secure={"name": "secagg"})
    found = {one.name: one for one in transfers(secure, 1e6, 1e6)}
    assert found.keys() == {
        OWN, "masked, differences down", "masked, 8 bits", "masked, 4 bits",
    }  # fmt: skip
    assert found["masked, 4 bits"].secure == {"bits": 4}


def test_the_command_prints_a_table_or_json() -> None:
    line = ("plan", "--example", "fashion", "--uplink", "2Mbit", "--downlink", "10Mbit")
    table = json.loads(done(*line, "--json", "--deadline", "5s").out)
    assert (table["rounds"], table["sites"], table["chosen"]) == (22, 10, "float16")
    said = done(*line, "--deadline", "0.1s").out
    assert "as written" in said
    assert "No codec does it" in said
    assert "--uplink" in refused(2, "plan", "--uplink", "2M", "--downlink", "1Mbit")
