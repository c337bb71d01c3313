"""A coordinator brings a revoked site back: by another list of revoked sites, or without a word.

Every site holds the list that the authority has signed. But of two lists the one with the higher
number counted: a server restored to before a revocation, whose operator has revoked two others
since, showed a list of number 2, and the sites gave up that of number 1. And a site did not look
whom a round of secure aggregation is with: the revoked one's keys were as good as any.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import authorities
import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.core.package import installed
from fedsight.core.types import Order
from fedsight.deploy.membership.kits import AUTHORITY_KEY
from fedsight.deploy.membership.revocations import Revocations
from fedsight.deploy.site import secagg_client
from fedsight.engines.protected import order_digest
from fedsight.privacy.secagg.keys import Identity
from fedsight.privacy.secagg.messages import Binding
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]


def by_number(self: Revocations, other: Revocations) -> list[str]:
    """The weakened build: a list with a higher number lacks nobody."""
    return [] if self.number > other.number else list(other.names)


@pytest.fixture
def ward(attack: Attack, tmp_path: Path) -> tuple[AttackedSite, Program]:
    """A site, and a program under secure aggregation."""
    images = draw(tmp_path / "images", noise_images(6))
    of = program(images, secure={"name": "secagg"}, split={"name": "iid", "sites": 3})
    site = attack("ward", images)
    authorities.give(tmp_path)
    authorities.show(site.home)
    return site, of


def listed(folder: Path, number: int, *sites: str) -> dict[str, Any]:
    """A list that the authority has signed."""
    return Revocations.signed(number, sites, folder / "ca" / AUTHORITY_KEY).table()


def propose(site: AttackedSite, of: Program, shown: dict[str, Any]) -> str:
    """Show the site a list with a proposal; the refusal, or nothing."""
    return str(site.join(of, revocations=shown).get("error", ""))


def begin(site: AttackedSite, of: Program, *others: str, serial: int = 1) -> str:
    """Begin a masked round with `others`; the refusal, or nothing."""
    keys = tuple((name, Identity.fresh().public.hex()) for name in others)
    roster = ((site.home.name, site.identity()), *keys)
    order = order_digest(Order(1, known(of).initial))
    parameters, accepted = of.secure.parameters(len(roster)), (0,) * len(roster)
    binding = Binding(
        *("run1", of.fingerprint, installed().sha256, 1, serial, order),
        *(roster, accepted, parameters, {"delta": 1}),
    )
    return str(site.ask("advertise", {}, binding.data)[0].get("error", ""))


@pytest.mark.parametrize("weak", [True, False])
def test_a_longer_list_of_others_does_not_bring_a_site_back(
    ward: tuple[AttackedSite, Program], tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak:
        monkeypatch.setattr(Revocations, "lacking", by_number)
    assert propose(*ward, listed(tmp_path, 1, "oslo")) == ""
    said = propose(*ward, listed(tmp_path, 2, "lyon", "rome"))
    assert (said == "") == weak
    assert weak or "does not name 'oslo'" in said
    assert ("oslo" not in Revocations.read(ward[0].home).names) == weak


@pytest.mark.parametrize("weak", [True, False])
def test_a_revoked_site_is_in_no_masked_round(
    ward: tuple[AttackedSite, Program], tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak:
        monkeypatch.setattr(secagg_client, "check_roster", lambda home, names: None)
    assert propose(*ward, listed(tmp_path, 1, "oslo")) == ""
    said = begin(*ward, "lyon", "oslo")
    assert (said == "") == weak
    assert weak or "names site 'oslo', which was revoked" in said
    assert begin(*ward, "lyon", "rome", serial=2) == "", (
        "an honest round is not kept from beginning"
    )
