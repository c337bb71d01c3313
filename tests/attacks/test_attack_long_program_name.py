"""A coordinator that fills a site's disk beyond its contract with what it calls its programs.

The name of a program is no part of its fingerprint, and may have any length. The order that a run
has ended kept all of it, three times with the site's recogniser, and `contract.disk` counted only
the models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.deploy.site.delivery import order, process, received
from fedsight.deploy.site.delivery.received import Received, ReceivedOrder
from fedsight.deploy.site.memories import occupied

LONG = 1 << 20  # characters


def on_disk(home: Path) -> int:
    """Bytes of what a run's end leaves, on the disk."""
    files = [*(home / "received").rglob("*"), *(home / "recognisers").rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file())


@pytest.mark.parametrize("weak", [True, False])
def test_what_a_program_is_called_takes_no_room_beyond_the_contract(
    attack: Callable[..., AttackedSite],
    tmp_path: Path,
    weak: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if weak:
        monkeypatch.setattr(order, "MAX_PROGRAM_NAME", 2 * LONG)
        monkeypatch.setattr(ReceivedOrder, "with_texts", lambda self: self)
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    of = replace(program(images), name="a" * LONG)
    site = attack("ward", images)
    assert "declared" in site.join(of)
    before = occupied(site.home)
    assert "error" not in site.deliver(known(of).initial, 3)[-1]
    counted = occupied(site.home) - before
    found = Received(site.home)
    (key,) = found.orders()
    assert process.deliver(site.home, key).state == "delivered"
    assert occupied(site.home) - before == counted, "it does not tell that it was made"
    assert (on_disk(site.home) > counted + LONG) == weak
    kept = found.read(key)
    assert kept is not None
    assert (len(kept.program["name"]) <= received.MAX_PROGRAM_NAME) != weak


def test_room_is_known_without_reading_the_orders(
    attack: Callable[..., AttackedSite], tmp_path: Path
) -> None:
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    of = program(images)
    site = attack("ward", images)
    site.join(of)
    site.deliver(known(of).initial, 3)
    found = Received(site.home)
    (key,) = found.orders()
    kept = found.read(key)
    assert kept is not None
    (found.folder(key) / received.ORDER).write_text("nothing")
    assert received.reserved(site.home) == kept.bytes
    (found.folder(key) / received.ROOM).unlink()  # a broken folder counts with what is in it
    assert 0 < received.reserved(site.home) < kept.bytes
