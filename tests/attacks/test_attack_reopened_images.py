"""Images that are opened again in the middle of a run are not those that the site declared.

A trainer that is interrupted is started anew and opens the images once more. By then some may not
be readable any longer, or have been withdrawn. What the second opening found was thrown away: with
fewer images DP-SGD samples each more often than the ledger charges, and exact figures were those of
a single test image. A coordinator interrupts a site whenever it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import Opened
from fedsight.governance.charges import charge
from fedsight.governance.costs import fedsight_epsilon
from fedsight.governance.ledger import Ledger
from fedsight.program.federation import Federation
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
CONTRACT = {"epsilon": 8.0, "figures": "exact"}
ROUNDS = 6


def thrown_away(self: SiteService, found: Opened) -> Opened:
    """As it was."""
    self._found = self._found or found
    return self._found


def with_fewer_left(
    attack: Attack, root: Path, **sections: Any
) -> tuple[AttackedSite, Program, Federation]:
    """A site that declared 400 training images and 20 test images, of which 24 and 1 are left."""
    data = draw(root / "images", noise_images(400), noise_images(20, 1))
    privacy = {"name": "example", "noise_multiplier": 1.0}
    of = program(
        data, privacy=privacy, train={"batch": 8}, rounds={"rounds": 2 * ROUNDS}, **sections
    )
    owner = {"name": "folder", "path": str(data), "corrupt": "skip"}
    site, whole = attack("site", owner, **CONTRACT), known(of)
    declared = site.join(of)["declared"]
    assert (declared["total"], declared["test"]) == (400, 20)
    assert declared["figures"] == "exact"
    for part, kept in (("train", 24), ("test", 1)):
        for path in (data / part).rglob("*.png"):
            if int(path.stem) >= kept:
                path.write_bytes(b"")
    return site, of, whole


def interrupt(site: AttackedSite) -> None:
    """What any request does that comes while another is worked on."""
    site.service._end_trainer()


def costs(site: AttackedSite, of: Program) -> tuple[float, float]:
    """Epsilon in the ledger, and what the steps on 24 images cost."""
    federation = site.service._trainer._commands._trainer.federation  # type: ignore[union-attr]
    event, times = charge(of.privacy, federation.plan, len(federation.client(0)))
    assert event is not None
    stated = Ledger(site.home).spent("images", 1e-5)
    return stated, fedsight_epsilon([(event, ROUNDS * times)], 1e-5)


def test_the_ledger_says_less_than_was_spent_where_a_second_opening_is_not_looked_at(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteService, "_as_before", thrown_away)
    site, of, whole = with_fewer_left(attack, tmp_path)
    model = whole.initial
    interrupt(site)
    for round in range(1, ROUNDS + 1):
        assert "error" not in site.train(model, round=round, accepted=0)[0]
    stated, real = costs(site, of)
    assert stated < CONTRACT["epsilon"] < real
    assert site.measure(model, round=ROUNDS)["metrics"]["confusion"][1] == 1, "image"


def test_ours_does_nothing_with_images_that_it_has_not_declared(
    attack: Attack, tmp_path: Path
) -> None:
    site, of, whole = with_fewer_left(attack, tmp_path)
    model = whole.initial
    for _ in range(3):
        interrupt(site)
        assert "answers nothing" in site.train(model)[0]["error"]
        assert "metrics" not in site.measure(model)
    assert "images or labels have changed" in (site.home / "log.jsonl").read_text()
    again = site.join(of, "run2")["declared"]
    assert (again["total"], again["test"], again["figures"]) == (24, 1, "none")
    assert "error" not in site.train(model)[0]


@pytest.mark.parametrize("weak", [True, False])
def test_parameters_that_come_do_not_open_other_images(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        monkeypatch.setattr(SiteService, "_as_before", thrown_away)
    frozen = {"algorithm": {"name": "fedrep"}}
    site, _, whole = with_fewer_left(attack, tmp_path, **frozen)
    said = site.adopt(whole.initial[whole.layout.kept])
    figures = site.measure(whole.initial[whole.layout.travelling])
    assert ("error" in said, "metrics" in figures) == (not weak, weak)


def test_an_interruption_alone_changes_nothing(attack: Attack, tmp_path: Path) -> None:
    data = draw(tmp_path / "images", noise_images(8), noise_images(20, 1))
    site, of = attack("site", data, figures="exact"), program(data)
    site.join(of)
    model = known(of).initial
    first = site.measure(model)["metrics"]
    interrupt(site)
    assert site.measure(model, round=2)["metrics"] == first


def test_one_image_in_the_place_of_another_is_a_change(attack: Attack, tmp_path: Path) -> None:
    """As many images as before, with the same labels: two figures would differ in one image."""
    data = draw(tmp_path / "images", noise_images(8), noise_images(20, 1))
    site, of = (
        attack("site", data, require=["secure_aggregation"], figures="exact"),
        program(data, secure={"name": "secagg"}),
    )
    assert "error" not in site.join(of)
    model = known(of).initial
    assert "metrics" in site.measure(model)
    draw(tmp_path / "images", noise_images(8), [*noise_images(19, 1), *noise_images(1, 2)])
    interrupt(site)
    assert "metrics" not in site.measure(model, round=2)
