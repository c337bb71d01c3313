"""A list of invented sites, for which one request suffices, that keeps others from every round.

A site records the first identity key under each name, for so many names at most, and refuses what
would be more, and a key that changes. It recorded the whole roster of a round as soon as the
coordinator asked it to begin one, before any of those sites had shown that it holds its key. So one
request with as many names as fit kept every site that was new to this one from its masked rounds,
until the owner edited the file; and a false key under the name of a site to come kept that one out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program
from masked_round import MaskedRound, masked_sites

from fedsight.core.package import installed
from fedsight.core.types import Order
from fedsight.deploy.site import peer_keys
from fedsight.deploy.site.peer_keys import PeerKeys
from fedsight.engines.protected import order_digest
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
MOST = 12  # sites that one remembers, in these tests
compare = PeerKeys.check


def as_named(self: PeerKeys, roster: Iterable[tuple[str, str]]) -> None:
    """The weakened build: a roster is recorded when an attempt begins."""
    found = list(roster)
    compare(self, found)
    self.record(found)


def keyed(names: Iterable[str]) -> list[tuple[str, str]]:
    """Invented sites with keys of the coordinator's."""
    return [(name, Identity.fresh().public.hex()) for name in names]


def begin(site: AttackedSite, of: Program, others: Sequence[tuple[str, str]], serial: int) -> str:
    """Begin an attempt at round 1 with `others`; the refusal, or nothing."""
    roster = ((site.home.name, site.identity()), *others)
    order = order_digest(Order(1, known(of).initial))
    parameters, accepted = of.secure.parameters(len(roster)), (0,) * len(roster)
    binding = Binding(
        *("run1", of.fingerprint, installed().sha256, 1, serial, order),
        *(roster, accepted, parameters, {"delta": 1}),
    )
    return str(site.ask("advertise", {}, binding.data)[0].get("error", ""))


@pytest.fixture(params=[True, False])
def weak(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(peer_keys, "MOST_SITES", MOST)
    if request.param:
        monkeypatch.setattr(PeerKeys, "check", as_named)
    return bool(request.param)


@pytest.fixture
def ward(attack: Attack, tmp_path: Path) -> tuple[AttackedSite, Program]:
    """A site that has joined a run under secure aggregation, and its program."""
    images = draw(tmp_path / "images", noise_images(6))
    of = program(images, secure={"name": "secagg"}, split={"name": "iid", "sites": 3})
    site = attack("ward", images)
    assert "error" not in site.join(of)
    return site, of


def test_invented_names_keep_new_sites_out(ward: tuple[AttackedSite, Program], weak: bool) -> None:
    assert begin(*ward, keyed(f"s{number}" for number in range(MOST - 1)), 1) == ""
    assert (begin(*ward, keyed(["lyon", "oslo"]), 2) != "") == weak


def test_a_false_key_keeps_a_site_to_come_out(
    ward: tuple[AttackedSite, Program], weak: bool
) -> None:
    assert begin(*ward, keyed(["lyon", "oslo"]), 1) == ""
    said = begin(*ward, keyed(["lyon", "oslo"]), 2)
    assert (said != "") == weak
    assert not weak or "shows another identity key" in said


def test_keys_of_sites_that_were_met_in_a_round_are_kept(attack: Attack, tmp_path: Path) -> None:
    """What the record is for: no other key under their names from then on."""
    names = ("lyon", "oslo", "ward")
    sites = masked_sites(attack, tmp_path, names)
    of = program(tmp_path / "images-ward", secure={"name": "secagg", "dropout": 0.0})
    for site in sites:
        assert "error" not in site.join(of)
    order = Order(1, known(of).initial)
    round = MaskedRound(sites, of, order)
    assert not (sites[2].home / "peers.json").exists(), "nobody has completed a round"
    round.sum([round.train(number) for number in range(3)])
    recorded = json.loads((sites[2].home / "peers.json").read_text())
    assert recorded == {site.home.name: site.identity() for site in sites[:2]}
    changed = [("lyon", sites[0].identity()), *keyed(["oslo"])]
    assert "site 'oslo' shows another identity key" in begin(sites[2], of, changed, 2)
