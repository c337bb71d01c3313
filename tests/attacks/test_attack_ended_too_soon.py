"""A site whose trainer is ended just before it is asked must not answer with zeros.

Another request ends the trainer of the work in progress. It may do so while that work is still
being charged, and ending a process takes a while. The site then looked whether it had a trainer,
found the one that was ending, waited, started another, and asked that one to train, which had no
images open. At a protected site this counted as a failure of the training: zeros. A coordinator
that asked all sites but one for something else at once had their zeros when it asked again (six
times of eight, with real processes), and the masked sum was the update of the one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, InlineTrainer, known
from masked_round import MaskedRound, in_the_clear, joined_sites

from fedsight.core.errors import EngineError
from fedsight.core.types import Order
from fedsight.deploy.site.trainer import Command, Trainer
from fedsight.deploy.site.trainer_holder import TrainerHolder
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
TARGET, OTHERS = 0, (1, 2)


def looks_first(self: TrainerHolder, command: Command, doing: str) -> Any:
    """Whether there is a trainer, and only then which, as it was."""
    assert self._opened is not None
    new = self._trainer is None
    trainer, _ = self._running_trainer()
    try:
        if new and command is not self._opened:
            trainer.ask(self._opened, doing)
        return trainer.ask(command, doing)
    except EngineError:
        self._end_trainer()
        raise


class Slow:
    """Charging takes until the trainer is being ended, and ending it until one is looked for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.home = Path()  # of the site that is slow
        self.charging = threading.Event()
        self.ending, self.looking = threading.Event(), threading.Event()
        appends, ends, looks = Ledger.append, InlineTrainer.close, TrainerHolder._running_trainer

        def append(ledger: Ledger, entry: Any, *given: Any) -> Any:
            found = appends(ledger, entry, *given)
            if ledger._home == self.home and entry.kind == "update":
                self.charging.set()
                assert self.ending.wait(60)
            return found

        def close(trainer: InlineTrainer) -> None:
            self.ending.set()
            assert self.looking.wait(60)
            ends(trainer)

        def running(holder: TrainerHolder) -> tuple[Trainer, bool]:
            if self.ending.is_set():
                self.looking.set()
            return looks(holder)

        patch.setattr(Ledger, "append", append)
        patch.setattr(InlineTrainer, "close", close)
        patch.setattr(TrainerHolder, "_running_trainer", running)

    def interrupt(self, attacker: MaskedRound, number: int) -> None:
        """Have a site begin to train, and ask for something else at once."""
        site, order = attacker.sites[number], attacker.order
        self.home = site.home
        for one in (self.charging, self.ending, self.looking):
            one.clear()
        header = {
            "vector": site.send("vector", [order.vector]),
            **{"round": 1, "attempt": 1, "sites": 3, "accepted": 0, "durable": 0, "seconds": 0},
            **{"extras": {}, "mark": 0, **attacker.header},
        }
        text, _ = site.service.answer("train", json.dumps(header), b"")
        assert json.loads(text)["done"] is False
        assert self.charging.wait(60)
        site.ask("adopt", {"sha256": 64 * "0", "mark": 0})
        self.home = Path()
        self.looking.set()  # nothing waits from now on


@pytest.mark.parametrize("weak", [True, False])
def test_the_sum_is_one_update_where_a_trainer_that_is_ending_counts_as_one(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    sites, of = joined_sites(attack, tmp_path, NAMES)
    attacker = MaskedRound(sites, of, Order(1, known(of).initial))
    target, *others = (in_the_clear(site, of, attacker.order) for site in sites)
    with monkeypatch.context() as patch:
        if weak:
            patch.setattr(TrainerHolder, "_ask_trainer", looks_first)
        slow = Slow(patch)
        for number in OTHERS:
            slow.interrupt(attacker, number)
        found = attacker.sum([attacker.train(number) for number in range(3)])["delta"]
    assert target.abs().max() > 1e-3
    assert (found - (target if weak else target + sum(others))).abs().max() < 1e-6
