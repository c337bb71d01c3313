"""A coordinator that keeps a site's machine at work, and its recognisers from being made.

An owner may want a model trained on the site's images alone, for as many passes as the run took of
them. How many that was, was the coordinator's word; and the order that took so long was begun
again, before all others, whenever the site was started. When the site counted for itself, it was
enough that no reply had counted: then as many passes were due as the program plans, in as many
rounds as it says, and what was asked for and abandoned at once counted as a round.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.core.types import Order
from fedsight.deploy.site.delivery.process import deliver
from fedsight.deploy.site.delivery.received import WORK, Received, ReceivedOrder
from fedsight.deploy.site.release import Release
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import AbandonedError
from fedsight.evaluation.delivery import at_site
from fedsight.program.budget import Budget
from fedsight.program.program import Speed

Attack = Callable[..., AttackedSite]


def ended(site: AttackedSite, images: Path, run: str, counted: int) -> ReceivedOrder:
    """A run of which the site trained in one round, and which is said to have counted more."""
    of = program(images)
    vector = known(of).initial
    assert "declared" in site.join(of, run)
    site.train(vector, round=1)
    assert "error" not in site.deliver(vector, 3, accepted=counted)[-1]
    found = Received(site.home)
    (order,) = (one for one in map(found.read, found.orders()) if one and one.run == run)
    return order


@pytest.mark.parametrize("weak", [True, False])
def test_a_site_counts_its_own_rounds(
    attack: Attack, tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak:
        monkeypatch.setattr(Release, "updates", 10**9)
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    order = ended(attack("ward", images), images, "run1", 3)
    assert order.counted == (3 if weak else 1)


def test_what_was_interrupted_comes_last(attack: Attack, tmp_path: Path) -> None:
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    site, found = attack("ward", images), Received(tmp_path / "ward")
    for run in ("run1", "run2"):
        ended(site, images, run, 1)
    first, second = found.orders()
    assert list(found.wanting(alone=True)) == [first, second]
    (found.folder(first) / WORK).mkdir()
    assert list(found.wanting(alone=True)) == [second, first]


def test_an_update_that_is_abandoned_is_no_round(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is charged when it begins, and costs no time."""
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    site, of = attack("ward", images), program(images)
    assert "declared" in site.join(of)

    def interrupted(*given: Any) -> None:
        raise AbandonedError("training was abandoned", "send the request again")

    with monkeypatch.context() as busy:
        busy.setattr(SiteService, "_ask_trainer", interrupted)
        assert "error" in site.train(known(of).initial, round=1)[0]
    release = site.service._enforcement.release
    assert release._ledger._asked["update", "run1", of.fingerprint, 1], "it was asked for"
    assert release.updates == 0
    assert "error" not in site.train(known(of).initial, round=1)[0]
    assert release.updates == 1


def test_a_site_whose_replies_never_counted_trains_nothing_alone(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    site = attack("ward", images, delivery={"alone": True})
    of = program(images, rounds={"rounds": 10**9}, train={"epochs": 100_000})
    assert "declared" in site.join(of)
    assert "error" not in site.deliver(known(of).initial, 10**9)[-1]
    trained: list[object] = []
    monkeypatch.setattr(at_site, "_alone", lambda *given: trained.append(given))
    (key,) = Received(site.home).orders()
    outcome = deliver(site.home, key)
    assert (outcome.state, outcome.alone, trained) == ("delivered", True, [])


def test_nothing_is_trained_alone_in_more_rounds_than_there_are_images_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = known(program(draw(tmp_path / "images", noise_images(8))))
    order = Order(1, of.initial[of.layout.travelling])
    final = at_site.FinalModel(order.vector, None, None, 10**9, 2)
    asked: list[Budget | None] = []

    def begun(baseline: Any, *given: Any) -> Any:
        asked.append(baseline.budget)
        return nullcontext((SimpleNamespace(vector=of.initial), None))

    monkeypatch.setattr(at_site, "training", begun)
    store: Any = SimpleNamespace(load_checkpoint=lambda: None)
    at_site._alone(of, 0, final, Speed(), store)
    assert asked == [Budget(2 * of.size(0), 2.0)]
