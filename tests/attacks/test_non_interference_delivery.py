"""What a site makes of the model that a run ended with says nothing, whatever its images are.

The conversation goes on after the run, while the site chooses its recogniser and after it has: with
another image, with a recogniser and without, with a model trained alone and without, every byte is
the same but those of released updates, whose length is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.deploy.site.delivery import process
from fedsight.deploy.site.delivery.received import Received
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
OFF, ON, ALONE = {"choose": False}, {"choose": True}, {"choose": True, "alone": True}
LOCAL: dict[str, Any] = {"privacy": {"name": "local", "noise_multiplier": 2.0}}


def held(site: AttackedSite, of: Program) -> None:
    """A run, its end, all that a coordinator may ask afterwards, and another run."""
    federation = known(of)
    vector = federation.initial[federation.layout.travelling].clone()
    assert "declared" in site.join(of)
    site.train(vector, round=1)
    site.measure(vector, round=2)
    site.calibrate(vector + 1, 3)
    site.deliver(vector + 1, 3, accepted=1)
    made(site)
    site.calibrate(vector + 1, 3, 1.0)
    site.deliver(vector + 1, 3, accepted=1)
    site.deliver(vector + 2, 3, accepted=1)  # another model of the same run
    site.deliver(torch.full_like(vector, float("nan")), 2, accepted=1)
    site.restart()
    site.join(of)
    site.deliver(vector + 1, 3, accepted=1)
    site.train(vector, round=2)
    site.join(of, "run2")
    site.train(vector, round=1)
    site.deliver(vector, 3, accepted=1)
    made(site)
    site.measure(vector, round=2)
    site.close()


def made(site: AttackedSite) -> None:
    """The site makes all that it is to make, as its own process does."""
    received = Received(site.home)
    for key in list(received.wanting(alone=False)):
        process.deliver(site.home, key)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedper"])
def test_no_byte_depends_on_what_is_delivered(
    attack: Attack, tmp_path: Path, algorithm: str
) -> None:
    plain = draw(tmp_path / "plain", noise_images(16), noise_images(60, 1))
    other = draw(tmp_path / "other", noise_images(16, 2), noise_images(60, 3))
    protected = {"require": ["local_dp"], "min_noise_multiplier": 1.0}
    of = program(plain, **LOCAL, algorithm={"name": algorithm})
    heard = {}
    for name, images, delivery in (
        ("on", plain, ON),
        ("off", plain, OFF),
        ("alone", plain, ALONE),
        ("others", other, ON),
    ):
        site = attack(f"{name}/ward", images, delivery=delivery, **protected)
        held(site, of)
        heard[name] = site.heard
        folders = list((site.home / "recognisers").glob("*"))
        assert len(folders) == (0 if delivery is OFF else 2)
        assert all((folder / "trust.json").is_file() for folder in folders)
    assert heard["on"] == heard["off"] == heard["alone"] == heard["others"]
    ends = [text for kind, text, _ in heard["on"] if kind == "deliver"]
    assert any('"missing": true' in text for text in ends)
    assert any("another final model" in text for text in ends)


def test_what_it_takes_on_the_disk_does_not_tell_when_it_was_made(
    attack: Attack, tmp_path: Path
) -> None:
    # `contract.disk` is told: it must not grow, or shrink, when a recogniser is finished.
    from fedsight.deploy.site.memories import occupied

    images = draw(tmp_path / "images", noise_images(16), noise_images(60, 1))
    of = program(images)
    site = attack("one/ward", images, delivery=ON)
    vector = known(of).initial
    site.join(of)
    before = occupied(site.home)
    site.deliver(vector, 3)
    took = occupied(site.home)
    made(site)
    assert occupied(site.home) == took
    (folder,) = (site.home / "recognisers").glob("*")
    filled = [*folder.iterdir(), *(site.home / "received").rglob("*")]
    assert (folder / "trust.json").is_file()
    assert took - before >= sum(path.stat().st_size for path in filled if path.is_file())


def test_a_contract_without_room_takes_no_model(attack: Attack, tmp_path: Path) -> None:
    images = draw(tmp_path / "images", noise_images(16), noise_images(60, 1))
    of = program(images)
    site = attack("one/ward", images, disk=0.0004)  # gigabytes; the model has 0.0003
    site.join(of)
    answers = site.deliver(known(of).initial, 3)
    assert "contract.disk" in answers[-1]["error"]
    assert not list(site.home.glob("received/*"))
