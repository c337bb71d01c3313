"""A coordinator that plays all of a site's peers, and leaves the site no trace of their keys.

Who holds the keys of all neighbours holds all masks of a site's update, and the shares of its own
mask. So it never has to ask the site to unmask anything, which was when the site recorded keys: the
owner had nothing to compare with those of the real peers, and the next round could have other ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, known, program
from masked_round import MaskedRound, masked_sites

from fedsight.core.types import Order
from fedsight.deploy.site.peer_keys import PeerKeys

Attack = Callable[..., AttackedSite]


def fresh_keys(sites: list[AttackedSite]) -> None:
    """The coordinator takes other keys for the peers that it plays."""
    for site in sites:
        (site.home / "identity.key").unlink()


@pytest.mark.parametrize("weak", [True, False])
def test_keys_of_peers_are_recorded_before_a_masked_update_leaves(
    attack: Attack, tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    *played, ward = masked_sites(attack, tmp_path, ("lyon", "oslo", "ward"))
    of = program(tmp_path / "images-ward", secure={"name": "secagg", "dropout": 0.0})
    for site in (*played, ward):
        assert "error" not in site.join(of)
    record: Any = PeerKeys.record
    if weak:  # only when the site is asked to unmask a sum, which it never is here
        monkeypatch.setattr(PeerKeys, "record", lambda *given: None)
    order = Order(1, known(of).initial)
    round = MaskedRound([*played, ward], of, order)
    path = ward.home / "peers.json"
    assert not path.exists(), "nothing has left yet"
    assert round.train(2), "the masked update is the coordinator's"
    assert path.exists() != weak
    monkeypatch.setattr(PeerKeys, "record", record)
    if weak:
        fresh_keys(played)
        again = MaskedRound([*played, ward], of, Order(2, known(of).initial), serial=2)
        assert again.train(2)
        return
    assert json.loads(path.read_text()) == {one.home.name: one.identity() for one in played}
    fresh_keys(played)
    with pytest.raises(ValueError, match="shows another identity key"):
        MaskedRound([*played, ward], of, Order(2, known(of).initial), serial=2)
