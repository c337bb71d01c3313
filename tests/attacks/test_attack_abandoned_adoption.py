"""A request abandons an adoption: keys would be for the values that came, training from the others.

Frozen parameters do not travel every round: a site adopts them, and opens its images again with
them. Whatever is asked meanwhile is meant for the new values, and it also ends the opening, because
a site does one piece of work at a time. The site then returned to the old values and did what was
asked. A coordinator that gave the other sites values under which nothing learns had the keys of all
for these, and one site's update, exactly, as the masked sum.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked_site import AttackedSite, InlineTrainer, known, program
from masked_round import MaskedRound, masked_sites
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.types import Order
from fedsight.deploy.declaration import open_site
from fedsight.deploy.site import trainer_holder
from fedsight.deploy.site.owner import read_owner
from fedsight.deploy.site.service import SiteService
from fedsight.deploy.site.trainer import AbandonedError, OpenData
from fedsight.engines.remote import messages

Attack = Callable[..., AttackedSite]


class SlowToOpen(InlineTrainer):
    """Opens images with the values `slow` until it is closed."""

    slow: Tensor

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self._closed = threading.Event()

    def ask(self, command: Any, doing: str) -> Any:
        """The answer to a command."""
        kept = command.kept if isinstance(command, OpenData) else None
        if kept is not None and torch.equal(kept, self.slow):
            assert self._closed.wait(60)
            raise AbandonedError(f"{doing} was abandoned for another request", "ask again")
        return super().ask(command, doing)

    def close(self) -> None:
        """As a process that is killed."""
        self._closed.set()
        super().close()


def only_the_values(self: SiteService, data: OpenData) -> None:
    """The weakened build: what was asked for other values is done when the old ones are back."""
    back = self._opened is not None and self._opened.kept is not None
    self._opened = data
    if not (back and data.kept is not None and not torch.equal(data.kept, SlowToOpen.slow)):
        self._joined = object()


def attacked(
    attack: Attack, root: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[AttackedSite], MaskedRound, Tensor]:
    """Three sites in a round whose keys are for dead values, the first of them opening its images
    with these when it is asked to train; and the update that it hides under the living ones."""
    sites = masked_sites(attack, root, ("a", "b", "c"))
    of = program(
        root / "images-a", train={"only": ["head.weight"], "lr": 0.1}, secure={"name": "secagg"}
    )
    federation = known(of)
    alive, layout = federation.initial, federation.layout
    dead = alive.clone()
    for entry in layout.entries:
        if entry.name != "head.weight":
            entry.view(dead).zero_()
    SlowToOpen.slow = dead[layout.kept]
    for site in sites:
        assert "error" not in site.join(of)
    for site in sites[1:]:
        assert "error" not in site.adopt(dead[layout.kept])
    monkeypatch.setattr(trainer_holder, "Trainer", SlowToOpen)
    sites[0].service._end_trainer()
    assert "error" not in sites[0].adopt(alive[layout.kept])
    begin_to_adopt(sites[0], dead[layout.kept])
    order = Order(1, alive[layout.travelling].clone())
    owner = read_owner(sites[0].home / "owner.toml", None)
    own, number = open_site(of, owner, "a")
    client = Client(own)
    client.adopt(alive[layout.kept])
    hidden = client.step(order, number, {}).payload["delta"]
    return sites, MaskedRound(sites, of, order, dead[layout.kept]), hidden


def begin_to_adopt(site: AttackedSite, kept: Tensor) -> None:
    """Have the site open its images with these values, without waiting until it has."""
    sha256 = hashlib.sha256(messages.pack([kept])).hexdigest()
    header = {"sha256": sha256, "mark": site.send("kept", [kept]), "seconds": 0}
    site.service.answer("adopt", json.dumps(header), b"")
    deadline = time.monotonic() + 60
    while (opened := site.service._opened) is None or not torch.equal(opened.kept, kept):  # type: ignore[arg-type]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_on_the_weakened_build_the_sum_is_one_sites_update(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteService, "_open_with", only_the_values)
    sites, round, hidden = attacked(attack, tmp_path, monkeypatch)
    updates = [round.train(number) for number in range(len(sites))]
    found = round.sum(updates)["delta"].float()
    assert float(hidden.abs().max()) > 1e-3
    assert torch.allclose(found, hidden, atol=1e-6)


def test_on_ours_the_site_does_nothing_that_was_asked_for_other_values(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, round, _ = attacked(attack, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="adopted other values since"):
        round.train(0)
    for number in (1, 2):
        round.train(number)
    assert sites[0].service._opened is not None
    assert not torch.equal(sites[0].service._opened.kept, SlowToOpen.slow)  # type: ignore[arg-type]
