"""Sites whose disks are full for a moment must not answer with zeros.

What a site remembers of a round is written before its update leaves. A coordinator can fill a disk
by another job, whose file is removed as soon as it does not fit. That the memory could not be
written counted as a failure of the training, and a protected site tried once more without its
images. With the disks of all sites but one filled at the right moment, the masked sum was the
update of that one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program
from masked_round import MaskedRound, in_the_clear

from fedsight.client import memory
from fedsight.core.errors import StoreError
from fedsight.core.files import write_atomically
from fedsight.core.types import Order
from fedsight.deploy.site import trainer_process

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
OTHERS = (1, 2)


class Disk:
    """Of all sites; `full`: for the next file of a run's memory. `where` it is written."""

    def __init__(self, patch: pytest.MonkeyPatch, where: object) -> None:
        self.full = False
        patch.setattr(where, "write_atomically", self.write)

    def write(self, path: Path, data: bytes) -> None:
        if self.full:
            self.full = False
            raise StoreError(f"cannot write {path}: No space left on device", "free some space")
        write_atomically(path, data)


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize("where", [memory, trainer_process])
def test_the_sum_is_one_update_where_a_full_disk_is_a_failure(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, weak: bool
) -> None:
    if weak:  # it was not told from other errors, of which those while training are kept back
        kind = StoreError if where is memory else type("Unknown", (StoreError,), {})
        monkeypatch.setattr(trainer_process, "NotKeptError", kind)
    disk = Disk(monkeypatch, where)
    sites = [
        attack(
            name,
            draw(tmp_path / f"images-{name}", noise_images(6, number)),
            require=["secure_aggregation"],
            masked_memory=True,
        )
        for number, name in enumerate(NAMES)
    ]
    feddyn = {"algorithm": {"name": "feddyn"}, "secure": {"name": "secagg"}}
    of = program(tmp_path / "images-a", **feddyn)
    for site in sites:
        assert "error" not in site.join(of)
    start, first = known(of).initial, {}
    if where is trainer_process:  # of a later round, whose number is noted
        attacker = MaskedRound(sites, of, Order(1, start))
        first = {number: attacker.train(number) for number in range(3)}
    attacker = MaskedRound(sites, of, Order(2 if first else 1, start), serial=2)
    remembered = []
    for site in sites:
        (folder,) = (site.home / "memory").glob("*/run1")
        remembered.append(memory.MemoryStore(folder).latest(site.home.name))
    target, *others = (
        in_the_clear(site, of, attacker.order, kept)
        for site, kept in zip(sites, remembered, strict=True)
    )
    about = {"durable": 1} if first else {}
    updates = {0: attacker.train(0, **about)}
    for number in OTHERS:
        disk.full = True
        if not weak:
            with pytest.raises(ValueError, match="the site cannot use its files"):
                attacker.train(number, **about)
        updates[number] = attacker.train(number, **about)
        assert not disk.full
    found = attacker.sum([updates[number] for number in range(3)])["delta"]
    assert target.abs().max() > 1e-3
    assert (found - (target if weak else target + sum(others))).abs().max() < 1e-6
