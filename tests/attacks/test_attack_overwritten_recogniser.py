"""A coordinator that replaces a recogniser of an earlier run, which the owner's clinic uses.

The folder was named by the program's name and 32 bits of a digest over the program and the run's
identifier, all of the coordinator's choice: it finds a second run with the same ones in minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.deploy.site.delivery import process, recognisers
from fedsight.deploy.site.delivery.received import Received

Attack = Callable[..., AttackedSite]


def at_one_place(home: Path, key: str, name: str) -> Path:
    """What a coordinator gets by trying identifiers, or more of them than there are."""
    return home / recognisers.FOLDER / f"{name}-00000000"


@pytest.mark.parametrize("weak", [True, False])
def test_a_run_does_not_replace_the_recogniser_of_another(
    attack: Attack, tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognisers, "place", at_one_place)
    if weak:
        monkeypatch.setattr(recognisers, "_is_of", lambda *given: True)
    images = draw(tmp_path / "images", noise_images(8), noise_images(4, 1))
    of = program(images)
    site, vector = attack("ward", images), known(of).initial
    found, made = Received(site.home), []
    path = at_one_place(site.home, "", of.name) / "model.safetensors"
    for number, run in enumerate(("run1", "run2")):
        site.join(of, run)
        site.deliver(vector + number, 3)
        (key,) = found.wanting(alone=False)
        made.append((process.deliver(site.home, key), path.read_bytes()))
    (first, before), (second, after) = made
    assert first.state == "delivered"
    assert (second.state == "delivered") == weak
    assert (after != before) == weak
    assert weak or "of another run" in second.why


def test_the_whole_key_names_the_folder(tmp_path: Path) -> None:
    keys = "0123456789abcdef", "0123456700000000"
    one, other = (recognisers.place(tmp_path, key, "run") for key in keys)
    assert one != other
