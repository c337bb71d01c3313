"""A site that is interrupted while it trains must not answer with zeros.

A protected site sends a contribution of zeros when its training fails. Another request ends the
training that is in progress. Where that counted as a failure, a coordinator interrupted all sites
but one, asked again, got their zeros, and the masked sum was the update of the one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attacked_site
import pytest
from attacked_site import AttackedSite, known, program
from masked_round import MaskedRound, in_the_clear, masked_sites

from fedsight.core.types import Order
from fedsight.deploy.site import trainer, trainer_holder
from fedsight.governance.ledger import Ledger
from fedsight.program.program import Program

Attack = Callable[..., AttackedSite]
NAMES = ("a", "b", "c")
TARGET, OTHERS = 0, (1, 2)


def begin(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MaskedRound, Program]:
    """The keys of a round of three sites; all but the target train in processes of their own."""
    kinds = dict.fromkeys(NAMES[1:], trainer.Trainer)
    chosen = lambda log: kinds.get(log.parent.name, attacked_site.InlineTrainer)(log)  # noqa: E731
    sites = masked_sites(attack, tmp_path, NAMES)
    monkeypatch.setattr(trainer_holder, "Trainer", chosen)
    of = program(tmp_path / "images-a", secure={"name": "secagg"})
    for site in sites:
        assert "error" not in site.join(of)
    return MaskedRound(sites, of, Order(1, known(of).initial)), of


def interrupt(attacker: MaskedRound, numbers: Sequence[int]) -> None:
    """Have sites begin to train, and ask for something else before they are done.

    Their trainers are stopped for as long, so that none is ever done too soon.
    """
    for number in numbers:
        site, order = attacker.sites[number], attacker.order
        os.kill(site.service._trainer._process.pid, signal.SIGSTOP)
        header = {
            "vector": site.send("vector", [order.vector]),
            **{"round": 1, "attempt": 1, "sites": 3, "accepted": 0, "durable": 0, "seconds": 0},
            **{"extras": {}, "mark": 0, **attacker.header},
        }
        text, _ = site.service.answer("train", json.dumps(header), b"")
        assert json.loads(text)["done"] is False
        while not any(entry.kind == "update" for entry in Ledger(site.home).entries()):
            time.sleep(0.01)  # charged: the work begins
        site.ask("adopt", {"sha256": 64 * "0", "mark": 0})


def test_the_sum_is_one_update_where_an_interruption_is_a_failure(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "AbandonedError", trainer.EngineError)
    attacker, of = begin(attack, tmp_path, monkeypatch)
    interrupt(attacker, OTHERS)
    found = attacker.sum([attacker.train(n) for n in range(3)])["delta"]
    target = in_the_clear(attacker.sites[TARGET], of, attacker.order)
    assert target.abs().max() > 1e-3
    assert (found - target).abs().max() < 1e-6


def test_ours_train_again_instead(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker, of = begin(attack, tmp_path, monkeypatch)
    interrupt(attacker, OTHERS)
    found = attacker.sum([attacker.train(n) for n in range(3)])["delta"]
    everybody = [in_the_clear(site, of, attacker.order) for site in attacker.sites]
    assert (found - sum(everybody)).abs().max() < 1e-6
    for number in OTHERS:
        entries = Ledger(attacker.sites[number].home).entries()
        kinds = [entry.kind for entry in entries if entry.round == 1]
        assert kinds == ["update", "update", "released", "sum"], "both attempts are charged"
