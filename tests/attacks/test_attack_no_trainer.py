"""Sites whose machine cannot start a trainer must not answer with zeros.

A new process for the training can be refused: there is no memory, process, thread or file left.
That says nothing of the images, and a coordinator that has a site do much at once may bring it
about, and end it. It counted as a failure of the training, and a protected site tried once more
without its images. A coordinator that chose when had zeros from all sites but one, and the masked
sum was the update of that one. (A process that was refused was told from a failure at first; a
thread or a pipe was not.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from attacked_site import AttackedSite, InlineTrainer, known
from masked_round import MaskedRound, in_the_clear, joined_sites

from fedsight.core.errors import EngineError
from fedsight.core.types import Order
from fedsight.deploy.processes import spawn
from fedsight.deploy.site import trainer, trainer_holder
from fedsight.deploy.site.trainer import NoTrainerError, Trainer

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
OTHERS = (1, 2)
LACKS: dict[str, tuple[object, str, Exception]] = {
    "process": (spawn, "start", EngineError("no process can be started here", "restart the site")),
    "thread": (spawn, "start", RuntimeError("can't start new thread")),
    "file": (trainer, "Pipe", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    "memory": (trainer, "Pipe", MemoryError()),
}


class Machine:
    """Starts the trainers of all sites; a busy one, which `lacks` something, refuses the next.
    `weak`: what it says then was not told from a failure of the training."""

    def __init__(self, patch: pytest.MonkeyPatch, lacks: str, weak: bool) -> None:
        self._patch, self._lacks, self._weak, self.busy = patch, lacks, weak, False
        patch.setattr(trainer_holder, "Trainer", self.start)

    def start(self, log: Path) -> InlineTrainer | Trainer:
        if not self.busy:
            return InlineTrainer(log)
        self.busy = False
        with self._patch.context() as patch:
            where, what, error = LACKS[self._lacks]
            patch.setattr(where, what, _raising(error))
            try:
                return Trainer(log)
            except NoTrainerError:
                if self._weak:
                    raise error from None
                raise


def _raising(error: Exception) -> Callable[..., NoReturn]:
    def refused(*_: object) -> NoReturn:
        raise error

    return refused


@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("weak", [True, False])
def test_the_sum_is_one_update_where_no_trainer_is_a_failure_of_the_training(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str, weak: bool
) -> None:
    machine = Machine(monkeypatch, lacks, weak)
    sites, of = joined_sites(attack, tmp_path, NAMES)
    attacker = MaskedRound(sites, of, Order(1, known(of).initial))
    target, *others = (in_the_clear(site, of, attacker.order) for site in sites)
    updates = {0: attacker.train(0)}
    for number in OTHERS:
        sites[number].service._end_trainer()  # as any other request would
        machine.busy = True
        if not weak:
            with pytest.raises(ValueError, match="no trainer process could be started"):
                attacker.train(number)
        updates[number] = attacker.train(number)
    found = attacker.sum([updates[number] for number in range(3)])["delta"]
    assert target.abs().max() > 1e-3
    assert (found - (target if weak else target + sum(others))).abs().max() < 1e-6
