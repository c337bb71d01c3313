"""Descriptions of rounds, keys, lists and jobs that are malformed in any way are refused in words.

Nothing else than a FedSightError may come of them, whatever their fields hold.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program
from hypothesis import given
from hypothesis import strategies as st
from secagg_rounds import binding, identity, lists

from fedsight.core.errors import SiteError
from fedsight.core.package import installed
from fedsight.deploy.flare.components import signed_fingerprint
from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.client import Minimums, SecAggClient
from fedsight.privacy.secagg.graph import Parameters, parameters
from fedsight.privacy.secagg.server import SecAggServer

SITES = 4
GIVEN = parameters(SITES, 0.0, 0.25, True)
VALID = asdict(binding(SITES, GIVEN))
NUMBERS = st.integers(-2, 6) | st.integers() | st.just(1 << 52)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
BUG = "the request failed"  # what a site answers where it knows no better
COUNTS = st.fixed_dictionaries(dict.fromkeys(asdict(GIVEN), NUMBERS))


def encoded(table: Any) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


@given(st.dictionaries(st.sampled_from([*VALID, "other"]), JUNK, min_size=1, max_size=3))
def test_any_description_of_a_round_is_read_or_refused(changes: dict[str, Any]) -> None:
    with contextlib.suppress(SiteError):
        m.Binding.read(encoded({**VALID, **changes}))


@given(st.binary(max_size=200) | JUNK.map(encoded))
def test_any_bytes_are_not_a_description(data: bytes) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        m.Binding.read(data)


@given(COUNTS)
def test_a_site_begins_no_round_with_a_graph_that_cannot_be(counts: dict[str, int]) -> None:
    """It refuses, or the graph is one that it can answer in."""
    with contextlib.suppress(SiteError):
        found = m.Binding.read(encoded({**VALID, "parameters": counts}))
        client = SecAggClient(identity(0), found, 0, Minimums().at_least(GIVEN))
        assert client.binding.parameters.neighbours == GIVEN.neighbours
        client.advertise()


def test_what_the_programs_rates_determine_is_accepted() -> None:
    found = m.Binding.read(encoded(VALID))
    assert found.parameters == Parameters(**asdict(GIVEN))
    SecAggClient(identity(0), found, 0, Minimums().at_least(GIVEN)).advertise()


@given(
    st.sampled_from(["share", "confirm", "agree", "unmask"]),
    st.integers(0, 400),
    st.binary(max_size=80),
    st.booleans(),
)
def test_any_message_to_a_site_is_refused_in_words(
    phase: str, cut: int, junk: bytes, headed: bool
) -> None:
    """With the right mark and digest, and then anything; also a valid message that is cut."""
    of = binding(SITES, GIVEN)
    client = SecAggClient(identity(0), of, 0, Minimums())
    client.advertise()
    marks = {"share": m.ADVERTS, "confirm": m.INBOX, "agree": m.LISTS, "unmask": m.UNMASK}
    valid = m.write_unmask(of, lists(SITES, [1]), m.Proof({0: bytes(64)}, {}))
    body = marks[phase] + of.digest + junk if headed else marks[phase] + valid[2:cut] + junk
    client._phase = {"share": "advertised", "confirm": "shared"}.get(phase, "masked")
    with contextlib.suppress(SiteError):
        getattr(client, phase)(body)


@given(
    st.sampled_from(["advert", "share", "confirm", "agree", "answer"]),
    st.integers(0, SITES - 1),
    st.binary(max_size=300),
)
def test_any_message_to_the_coordinator_is_refused_in_words(
    phase: str, site: int, junk: bytes
) -> None:
    of = binding(SITES, GIVEN)
    server = SecAggServer(of)
    marks = {"advert": m.ADVERTISE, "share": m.SHARES, "confirm": m.CONFIRM, "agree": m.AGREE}
    for body in (junk, marks.get(phase, m.ANSWER) + of.digest + junk):
        with contextlib.suppress(SiteError):
            getattr(server, phase)(site, body)


@given(st.binary(max_size=60) | JUNK.map(encoded))
def test_a_job_file_without_a_fingerprint_permits_no_program(data: bytes) -> None:
    assert signed_fingerprint(data) == ""


@pytest.mark.parametrize("components", [{}, [], [{}], [{"args": []}], [[]], "x", 3, None])
def test_nor_does_one_of_another_form(components: Any) -> None:
    assert signed_fingerprint(encoded({"components": components})) == ""
    assert signed_fingerprint(b"[" * 100_000) == ""
    good = {"components": [{"args": {"fingerprint": "f" * 64}}]}
    assert signed_fingerprint(encoded(good)) == "f" * 64


def test_any_lengths_of_vectors_are_refused_in_words(
    attack: Callable[..., AttackedSite], tmp_path: Path
) -> None:
    """Also negative ones: numpy reads -1 as all that is left, so that two vectors may overlap."""
    images = draw(tmp_path / "images", noise_images(8))
    of = program(images, algorithm={"name": "scaffold"})
    site = attack("ward", images)
    assert "declared" in site.join(of)
    sent = known(of).initial
    header = {"round": 1, "sites": 3, "accepted": 0, "durable": 0, "quantiser": None}

    def refusal(extras: Any) -> str:
        marks = {name: site.send(name, [sent]) for name in ("vector", "extras")}
        vector, mark = marks.values()
        asked = {**header, "attempt": mark, "vector": vector, "extras": extras, "mark": mark}
        return str(site.ask("train", asked)[0]["error"])

    for extras in (None, 3, "x", [[1]], {"a": None}, {"a": 1.5}, {"a": -1}, {"a": 1, "b": -1}):
        assert BUG not in refusal(extras), extras
    for extras in ({"control": sent.numel() - 1}, {"control": 1 << 40}):
        assert "another length" in refusal(extras)


@pytest.mark.parametrize("proposed", [None, 3, "x", [], [1], [["name", "x"]]])
def test_what_is_no_program_is_refused_in_words(
    attack: Callable[..., AttackedSite], tmp_path: Path, proposed: Any
) -> None:
    site = attack("ward", draw(tmp_path / "images", noise_images(8)))
    header = {"run": "run1", "sites": 3, "program": proposed, "fingerprint": "f" * 64}
    header["package"] = installed().table()
    answer, _ = site.ask("propose", header)
    assert "no program" in answer["error"]
