"""A drained site that takes part in something new: a round with the number of the one it was in.

Its owner lets it finish the round that has begun. Which one that is was kept by number alone, and a
run that is said to be trained may be joined by a drained site, to be measured. So a coordinator
that proposed another run had the site train in its round of the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.core.package import installed
from fedsight.deploy.site import state
from fedsight.deploy.site.service import ServiceAnswer, SiteService

Attack = Callable[..., AttackedSite]


def trained_elsewhere(attack: Attack, tmp_path: Path) -> dict[str, Any]:
    """What a site says that is drained in round 1 of a run, to round 1 of an earlier one."""
    of = program(draw(tmp_path / "images", noise_images(6)))
    vector = known(of).initial
    site = attack("one", tmp_path / "images")
    site.join(of, "earlier")
    site.join(of, "run1")
    assert "error" not in site.train(vector)[0]
    state.drain(site.home, True)
    assert "error" not in site.train(vector)[0], "it finishes the round"
    fields = {"run": "earlier", "program": of.table(), "fingerprint": of.fingerprint, "sites": 3}
    fields |= {"package": installed().table(), "revocations": None, "trained": True}
    assert "declared" in site.ask("propose", fields)[0], "it may still be measured"
    return site.train(vector)[0]


def test_it_trains_in_another_run_where_a_round_is_known_by_its_number(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = SiteService._join

    def weak(self: SiteService, *given: Any) -> ServiceAnswer:
        begun = self._begun
        try:
            return join(self, *given)
        finally:
            self._begun = begun

    monkeypatch.setattr(SiteService, "_join", weak)
    assert "error" not in trained_elsewhere(attack, tmp_path)


def test_ours_takes_part_in_nothing_new(attack: Attack, tmp_path: Path) -> None:
    assert "has drained this site" in str(trained_elsewhere(attack, tmp_path)["error"])
