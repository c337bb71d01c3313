"""What protections cost in bytes: the shortest codec that they refuse, beside what a run sends."""

from __future__ import annotations

from typing import Any

import federations
import pytest

from fedsight.evaluation.protected_bytes import shorter_codec

MASKED: dict[str, Any] = {"secure": {"name": "secagg"}}
UNIFORM: dict[str, Any] = {"rounds": {"rounds": 2, "weighting": "uniform"}}
NOISED = {"name": "central", "noise_multiplier": 1.0, "clip": 1.0}


@pytest.mark.parametrize(
    "sections",
    [
        MASKED,
        {**MASKED, "codec": {"down": {"steps": [{"name": "eden", "bits": 2}]}}},
        {**UNIFORM, "privacy": NOISED},
    ],
    ids=["masks", "masks and differences", "noise"],
)
def test_the_bytes_are_those_of_the_run_and_of_one_without_protection(
    sections: dict[str, Any],
) -> None:
    of, diary = federations.federation(**sections), federations.Diary()
    found = shorter_codec(of)
    assert found is not None
    federations.learn(of, diary=diary)
    last = diary.lines[-1]
    assert (3 * found["reply"], 3 * found["order"]) == (last["bytes_up"], last["bytes_down"])
    assert found["codec"] == "top-k up, eden 1 bit down"
    codec = {
        "up": {
            "steps": [
                {"name": "top-k", "share": 0.05},
                {"name": "quantise", "bits": 4, "block": 128},
            ],
            "feedback": True,
        },
        "down": {"steps": [{"name": "eden", "scale": "least"}]},
    }
    diary = federations.Diary()
    federations.learn(federations.federation(**UNIFORM, codec=codec), diary=diary)
    last = diary.lines[-1]
    assert 3 * found["shortest_reply"] == last["bytes_up"] < 3 * found["reply"]
    assert 3 * found["shortest_order"] == last["bytes_down"] <= 3 * found["order"]


def test_nothing_is_said_where_no_protection_refuses_a_codec() -> None:
    """Rounding alone protects nothing, and a site that adds noise encodes afterwards."""
    noise = {"name": "example", "noise_multiplier": 1.0, "clip": 1.0}
    assert shorter_codec(federations.federation()) is None
    assert shorter_codec(federations.federation(secure={"name": "quantised"})) is None
    assert shorter_codec(federations.federation(privacy=noise)) is None
