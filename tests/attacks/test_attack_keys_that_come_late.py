"""Sites that are asked to train before they have all keys must not answer with zeros.

An update is masked once it is trained. If not all phases of the round were over then, there were no
masks, which counted as a failure of the training: a protected site tried once more without its
images. A coordinator that sent what was missing meanwhile had zeros, masked, from all sites but
one, and the sum was the update of that one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, InlineTrainer, known
from masked_round import MaskedRound, in_the_clear, joined_sites

from fedsight.core.errors import DeployError
from fedsight.core.types import Order
from fedsight.deploy.site import secagg_client
from fedsight.deploy.site.trainer import TrainStep

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
TARGET, OTHERS = 0, (1, 2)


class Hasty(MaskedRound):
    """Asks all sites but the target to train before they have received the shares of the others,
    which come while they make zeros."""

    def __init__(self, patch: pytest.MonkeyPatch, *given: Any) -> None:
        self.patch, self.updates, self.refused = patch, dict[int, bytes](), dict[int, str]()
        super().__init__(*given)

    def told(self, number: int, kind: str, body: bytes) -> bytes:
        if kind != "confirm" or number == TARGET:
            return super().told(number, kind, body)
        ask, asks = super().told, InlineTrainer.ask

        def late(trainer: InlineTrainer, command: Any, doing: str) -> Any:
            if isinstance(command, TrainStep) and command.blank:
                ask(number, kind, body)
            return asks(trainer, command, doing)

        with self.patch.context() as patch:
            patch.setattr(InlineTrainer, "ask", late)
            try:
                self.updates[number] = self.train(number)
            except ValueError as error:
                self.refused[number] = str(error)
        return ask(number, kind, body)


@pytest.mark.parametrize("weak", [True, False])
def test_the_sum_is_one_update_where_masks_that_are_not_there_are_a_failure(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    if weak:
        monkeypatch.setattr(secagg_client, "NoMasksError", DeployError)
    sites, of = joined_sites(attack, tmp_path, NAMES)
    attacker = Hasty(monkeypatch, sites, of, Order(1, known(of).initial))
    target, *others = (in_the_clear(site, of, attacker.order) for site in sites)
    assert attacker.updates.keys() == ({*OTHERS} if weak else set())
    assert all("no shares have come" in why for why in attacker.refused.values())
    updates = [attacker.updates.get(n) or attacker.train(n, attempt=99) for n in range(3)]
    found = attacker.sum(updates)["delta"]
    assert target.abs().max() > 1e-3
    assert (found - (target if weak else target + sum(others))).abs().max() < 1e-6
