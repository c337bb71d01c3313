"""A malicious site makes the model such that all sites diverge, and an honest one is blamed.

Its update is within the exact range, so it counts. In the next round everybody fails, and the
message named the first of them. Ours notes in the round itself whose update was out of all
proportion, and says so where the others fail. Where it made the model such that it could not even
be sent, or was not finite any more, the run ended at once, and nobody was named at all.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import federations
import numpy as np
import pytest
import site_services
import torch
from site_services import Clock, FaultyLink, Places

from fedsight.aggregation.mean import Mean
from fedsight.coordinator import loop
from fedsight.core.errors import FedSightError, RefusedError, SiteError
from fedsight.core.types import PartSpec
from fedsight.engines.base import Outcome
from fedsight.engines.remote import engine, outliers

# They alter what comes of a reply: it comes by itself.
pytestmark = pytest.mark.usefixtures("vectors_apart")

BAD = "west"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().rule(monkeypatch)


def enormous(kind: str, header: Mapping[str, Any], text: str, body: bytes) -> tuple[str, bytes]:
    """An update of which every value is 10^8, up or down."""
    if kind != "fetch":
        return text, body
    values = np.frombuffer(body, "<f4")
    return text, (np.sign(values) * 1e8).astype("<f4").tobytes()


def train(places: Places, site_images: Any, **more: Any) -> tuple[str, federations.Diary]:
    """Why the run ends, and its history."""
    diary = federations.Diary()
    sections = {"rounds": {"quorum": 2, "rounds": 3}, "train": {"lr": 3.0, "epochs": 6}}
    of = site_services.program(site_images, **sections, **more)
    federation, link = places.meet(of)
    with pytest.raises(FedSightError) as caught:
        site_services.learn(federation, FaultyLink(link, BAD, enormous), diary)
    return caught.value.cause, diary


def test_an_honest_site_is_blamed_where_nobody_looks_at_updates(
    places: Places, site_images: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "FAR", float("inf"))
    cause, _ = train(places, site_images)
    assert re.search("the first rejected: .*site '(north|south)'", cause)
    assert BAD not in cause


def test_ours_says_whose_update_came_before(places: Places, site_images: Any, clock: Clock) -> None:
    cause, diary = train(places, site_images)
    assert f"but in the round before, site '{BAD}' sent an update with values of 'delta'" in cause
    assert "up to 1e+08" in cause
    assert list(diary.lines[0]["doubts"]) == [BAD]


AT_ONCE = pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"codec": {"down": {"steps": ["float16"]}}}, "the model after round 1 cannot be encoded"),
        ({"algorithm": {"name": "fedavgm", "server_lr": 1e32}}, "no longer finite after round 1"),
    ],
    ids=["a codec", "the server's step"],
)


@AT_ONCE
def test_nobody_is_named_where_the_round_itself_cannot_be_finished(
    places: Places,
    site_images: Any,
    clock: Clock,
    more: dict[str, Any],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "_doubting", contextlib.nullcontext)
    cause, diary = train(places, site_images, **more)
    assert why in cause
    assert BAD not in cause
    assert diary.lines == []


@AT_ONCE
def test_ours_says_whose_update_it_was(
    places: Places, site_images: Any, clock: Clock, more: dict[str, Any], why: str
) -> None:
    cause, _ = train(places, site_images, **more)
    assert why in cause
    assert f"but site '{BAD}' sent an update with values of 'delta' up to 1e+08" in cause


def test_all_that_are_in_doubt_are_named_also_in_another_process() -> None:
    doubts = {"east": "site 'east' lied", "west": "site 'west' lied too"}
    with pytest.raises(SiteError) as caught, loop._doubting(doubts):
        raise RefusedError("the model is lost", "check the sites", {"evidence": 1})
    error = pickle.loads(pickle.dumps(caught.value))
    why = "the model is lost; but site 'east' lied; site 'west' lied too: this may be why"
    assert error.cause == why
    assert (error.cure, error.evidence) == ("check the sites", {"evidence": 1})
    rounds = federations.program().rounds
    nothing = Outcome(Mean().aggregator({"delta": PartSpec((1,))}, 3))
    with pytest.raises(SiteError, match="before, site 'east' lied; site 'west' lied too: this"):
        loop._require_quorum(nothing, 2, 3, rounds, doubts)


def test_updates_that_differ_as_honest_ones_do_are_not_doubted(
    places: Places, site_images: Any, clock: Clock
) -> None:
    diary = federations.Diary()
    federation, link = places.meet(site_services.program(site_images))
    site_services.learn(federation, link, diary)
    assert all("doubts" not in line for line in diary.lines)


def test_of_two_replies_either_may_be_odd() -> None:
    assert outliers.outliers({"delta": {"a": 1.0, "b": 1e9}}) == {}
    assert outliers.outliers({"delta": {"a": 0.0, "b": 0.0, "c": 1.0}}) == {}
    assert list(outliers.outliers({"delta": {"a": 0.1, "b": 0.2, "c": 1e9}})) == ["c"]


def test_a_number_that_follows_from_the_images_is_not_odd_at_a_large_site(
    places: Places, site_images: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length of a FedNova site's path: a step for each batch of its images."""
    monkeypatch.setattr(outliers, "FAR", 1.2)  # between 14 and 11 images, the median
    sections: dict[str, Any] = {"algorithm": {"name": "fednova"}, "train": {"batch": 1}}

    def doubts() -> list[str]:
        diary = federations.Diary()
        federation, link = places.meet(site_services.program(site_images, **sections))
        site_services.learn(federation, link, diary)
        return [why for line in diary.lines for why in line.get("doubts", {}).values()]

    assert not any("'length'" in why for why in doubts())
    monkeypatch.setattr(engine, "outliers", lambda peaks, proven: outliers.outliers(peaks))
    assert any("site 'north' sent an update with values of 'length'" in why for why in doubts())


def beside_a_scalar(scalar: str, honest: float, length: float) -> dict[str, dict[str, float]]:
    """The peaks of five updates of `length`, beside `honest`, and one 5,000 times as long."""
    total = Mean().aggregator({"delta": PartSpec((64,)), scalar: PartSpec((1,))}, 6)
    for number in range(6):
        delta = torch.linspace(-1, 1, 64) * length * (5_000 if number == 5 else 1 + number / 10)
        total.add({"delta": delta, scalar: torch.tensor([honest])}, 1, f"site-{number}")
    return total.peaks


@pytest.mark.parametrize(
    ("scalar", "honest", "length"),
    [("length", 5.0, 1e-3), ("square", 1.0, 1e-3), ("control", 2.0, 1e-3)],
    ids=["FedNova", "FedExP", "SCAFFOLD"],
)
def test_a_large_number_beside_an_update_does_not_hide_it(
    scalar: str, honest: float, length: float
) -> None:
    """With one peak for all parts, it did."""
    peaks = beside_a_scalar(scalar, honest, length)
    sites = peaks["delta"]
    together = {site: max(one[site] for one in peaks.values()) for site in sites}
    assert outliers.outliers({"all": together}) == {}
    assert list(outliers.outliers(peaks)) == ["site-5"]
