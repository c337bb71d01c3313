"""A site that joins another program while it makes its keys for the one before: one site's update.

Keys are made for the program that a site takes part in. A coordinator sends two requests at once:
to make keys for a program under which nobody learns, and to join one under which this site does. If
the site joins in between, it has keys for the first program, and trains under the second; all
others have keys for the first, and learn nothing. (Without any help by a test the twentieth attempt
was such a one.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, known, program
from masked_round import MaskedRound, in_the_clear, masked_sites

from fedsight.core.types import Order
from fedsight.deploy.site.owner import OwnerSettings
from fedsight.deploy.site.peer_keys import Peer, PeerKeys
from fedsight.deploy.site.release import Release
from fedsight.deploy.site.secagg_client import SiteSecAgg
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")


def joins_at_once(
    self: SiteSecAgg, program: Program, owner: OwnerSettings, run: str, release: Release
) -> None:
    """Whatever answer is being made, as it was."""
    self._run, self._client, self._release = (program, owner, run), None, release


class Attacker:
    """Three sites that take part in a program under which nobody learns, and one under which the
    first of them does."""

    def __init__(self, attack: Attack, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.sites, self.patch = masked_sites(attack, root, NAMES), patch
        secure, images = {"name": "secagg"}, root / "images-a"
        self.honest = program(images, secure=secure)
        self.dead = program(images, secure=secure, train={"lr": 1e-30})
        self.order = Order(1, known(self.honest).initial)
        for site in self.sites:
            assert "error" not in site.join(self.dead)

    def round(self, waits: bool) -> MaskedRound:
        """The keys of all sites for the dead program; the first site is asked to join the other one
        in the middle of making its own. `waits`: it cannot before these are made."""
        patch, came, joins = self.patch, threading.Event(), SiteSecAgg.join
        proposal = threading.Thread(target=self.sites[0].join, args=(self.honest,))

        def join(self: SiteSecAgg, *given: object) -> None:
            if waits:
                came.set()
            joins(self, *given)  # type: ignore[arg-type]
            came.set()

        def check(self: PeerKeys, roster: Iterable[Peer]) -> None:
            if proposal.ident is None:  # the first site's keys are being made
                proposal.start()
                assert came.wait(60)

        class Patient(MaskedRound):
            def told(self, number: int, kind: str, body: bytes) -> bytes:
                said = super().told(number, kind, body)
                proposal.join()
                return said

        patch.setattr(SiteSecAgg, "join", join)
        patch.setattr(PeerKeys, "check", check)
        return Patient(self.sites, self.dead, self.order)


def test_keys_of_the_program_before_uncover_a_site_that_joins_meanwhile(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteSecAgg, "join", joins_at_once)
    attacker = Attacker(attack, tmp_path, monkeypatch)
    round = attacker.round(waits=False)
    found = round.sum([round.train(n) for n in range(3)])["delta"]
    target = in_the_clear(attacker.sites[0], attacker.honest, attacker.order)
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < 1e-6


def test_ours_gives_up_the_keys_of_the_program_before(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker = Attacker(attack, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="this site has no keys for secure aggregation"):
        attacker.round(waits=True)
