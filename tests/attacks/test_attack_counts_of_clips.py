"""One site moves the clip of all sites, or ends the job, under central privacy with a quantile.

Beside its update a site sends whether its norm was below the clip, as 1/2 or -1/2; the sum moves
the clip. A site that sent -10^4 instead took the clip to its largest value at once, and the noise
with it; with -10^8 the coordinator's exponential overflowed, which ended its process. Nor did
anybody check that a site's update is clipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import site_services
import torch
from site_services import FaultyLink, Places

from fedsight.core.types import Payload
from fedsight.privacy.clip import check_clipped, clip
from fedsight.privacy.mechanisms.central import BELOW, CLIP, Central

# They alter what comes of a reply: it comes by itself.
pytestmark = pytest.mark.usefixtures("vectors_apart")

BAD = "south"
PRIVACY = {"name": "central", "quantile": 0.5, "noise_multiplier": 1.0, "clip": 1.0}


def train(places: Places, images: Path, change: Callable[[Payload], None]) -> tuple[float, Any]:
    """One round in which a site changes its update: the clip after it, and the round's line."""
    rounds = {"quorum": 2, "rounds": 1, "weighting": "uniform"}
    program = site_services.program(images, rounds=rounds, privacy=PRIVACY)
    federation, link = places.meet(program)
    specs = federation.parts

    def alter(kind: str, header: dict[str, Any], text: str, data: bytes) -> tuple[Any, Any]:
        if kind != "fetch":
            return text, data
        whole = np.frombuffer(data, np.float32).copy()
        edges = np.cumsum([0, *(spec.values for spec in specs.values())])
        parts = [whole[a:b] for a, b in itertools.pairwise(edges)]
        change({name: torch.from_numpy(part) for name, part in zip(specs, parts, strict=True)})
        return text, whole.tobytes()

    diary = federations.Diary()
    trained = site_services.learn(federation, FaultyLink(link, BAD, alter), diary)
    return float(trained.checkpoint.state[CLIP]), diary.lines[0]


def counts(value: float) -> Callable[[Payload], None]:
    def change(payload: Payload) -> None:
        payload[BELOW].fill_(value)

    return change


@pytest.mark.parametrize("value", [-1e4, -1e8, 0.25])
def test_a_count_of_more_than_one_update_moves_no_clip(
    places: Places, site_images: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    after, line = train(places, site_images, counts(value))
    assert "not 1/2 or -1/2" in line["rejected"][BAD]
    assert 0.5 < after < 2
    monkeypatch.setattr(Central, "check_reply", lambda *_: None)  # as it was
    after, line = train(places, site_images, counts(value))
    assert line["rejected"] == {}
    if value < -1:
        assert after == 1e6


def test_an_update_above_the_clip_is_refused(
    places: Places, site_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(payload: Payload) -> None:
        payload["delta"].fill_(1.0)

    _, line = train(places, site_images, change)
    assert "above the clip of 1" in line["rejected"][BAD]
    monkeypatch.setattr(Central, "check_reply", lambda *_: None)  # as it was
    _, line = train(places, site_images, change)
    assert line["rejected"] == {}


def test_what_was_clipped_is_not_refused_after_rounding_to_16_bits() -> None:
    for seed in range(20):
        values = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * 10
        sent = clip({"delta": values}, 1.0, "lyon")["delta"].half().float()
        check_clipped({"delta": sent}, 1.0, "lyon")
