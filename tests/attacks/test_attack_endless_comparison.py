"""A coordinator that keeps a site's machine at work, and its recognisers from being made.

An owner may want a model trained on the site's images alone, for as many passes as the run took of
them. How many that was, was the coordinator's word; and the order that took so long was begun
again, before all others, whenever the site was started.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.deploy.site.delivery.received import WORK, Received, ReceivedOrder
from fedsight.deploy.site.release import Release

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
