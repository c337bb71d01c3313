"""Sites whose record of keys is busy must not answer with zeros.

Before a masked update leaves, a site records the keys of its neighbours, and waits for another job
that does so. A coordinator may run many jobs at a site, each with rounds of sites that it has made
up. Where a record that stayed busy counted as a failure of the training, the site tried once more
without its images: zeros, masked, as from a site whose training fails. With all sites but one kept
busy, the sum is the update of that one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, InlineTrainer, known
from masked_round import MaskedRound, in_the_clear, joined_sites

from fedsight.core import locks
from fedsight.core.errors import DeployError, EngineError
from fedsight.core.types import Order
from fedsight.deploy.site import peer_keys, secagg_client
from fedsight.deploy.site.trainer import TrainStep

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
TARGET, OTHERS = 0, (1, 2)


def busy(site: AttackedSite, monkeypatch: pytest.MonkeyPatch) -> ExitStack:
    """The lock of the site's record, held until it trains without its images, or is closed."""
    held = ExitStack()
    path = site.home / "peers.lock"
    held.enter_context(locks.hold(path, 0.0, EngineError("the lock is taken", "")))
    asks = InlineTrainer.ask

    def freed(trainer: InlineTrainer, command: Any, doing: str) -> Any:
        if isinstance(command, TrainStep) and command.blank:
            held.close()
        return asks(trainer, command, doing)

    monkeypatch.setattr(InlineTrainer, "ask", freed)
    return held


@pytest.mark.parametrize("weak", [True, False])
def test_the_sum_is_one_update_where_a_busy_record_is_a_failure(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
) -> None:
    monkeypatch.setattr(peer_keys, "LOCK_TIMEOUT", 0.0)
    if weak:
        monkeypatch.setattr(secagg_client, "NoMasksError", DeployError)
    sites, of = joined_sites(attack, tmp_path, NAMES)
    attacker = MaskedRound(sites, of, Order(1, known(of).initial))
    target, *others = (in_the_clear(site, of, attacker.order) for site in sites)
    updates = [attacker.train(TARGET)]
    for number in OTHERS:
        with busy(sites[number], monkeypatch):
            if weak:
                updates.append(attacker.train(number))
                continue
            with pytest.raises(ValueError, match="another process is recording"):
                attacker.train(number)
        updates.append(attacker.train(number, attempt=2))  # nothing is lost: it may ask again
    found = attacker.sum(updates)["delta"]
    assert target.abs().max() > 1e-3
    assert (found - (target if weak else target + sum(others))).abs().max() < 1e-6
