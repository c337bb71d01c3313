"""An abandoned question of 10^400 steps is charged, and nobody can read the site's ledger any more.

The charge is written before the work begins, and the ledger is append-only: from then on epsilon
could not be computed, at the command line or for any later run. Ours refuses such a program, and
what is in a ledger already costs infinitely much.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from attacked_site import draw, noise_images, program

from fedsight.cli.ledger import as_table
from fedsight.core.errors import ConfigError, DeployError
from fedsight.governance.charges import charge
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.privacy import accounting
from fedsight.privacy.base import Plan
from fedsight.privacy.mechanisms.example import Example

STEPS = 10**400


def poisoned(home: Path) -> Path:
    """A ledger with the entry that such a question left."""
    plan = Plan(1, None, 1, batch=8, sizes=(60,))
    event, _ = charge(Example(noise_multiplier=1.0), plan, 60)
    entry = LedgerEntry(
        *("update", "run1", "program", 1),
        question="q",
        event=event,
        times=STEPS,
        data_set="images",
        enforced=True,
    )
    Ledger(home).append(entry)
    return home


def test_without_a_limit_on_counts_the_ledger_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "MOST_COUNT", math.inf)
    with pytest.raises(OverflowError):
        as_table(Ledger(poisoned(tmp_path)), tmp_path)


def test_ours_says_that_it_cost_infinitely_much(tmp_path: Path) -> None:
    ledger = Ledger(poisoned(tmp_path))
    assert math.isinf(ledger.spent("images", 1e-5))
    assert as_table(ledger, tmp_path)


def test_ours_refuses_such_a_program_and_such_a_charge(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", noise_images(6))
    for section in (
        {"train": {"epochs": STEPS}},
        {"algorithm": {"name": "fedrep", "head_epochs": STEPS}},
    ):
        with pytest.raises(ConfigError, match="epochs"):
            program(images, privacy={"name": "example", "noise_multiplier": 1.0}, **section)
    plan = Plan(1, None, 1, batch=8, passes=STEPS, sizes=(60,))
    with pytest.raises(DeployError, match="steps in a round"):
        charge(Example(noise_multiplier=1.0), plan, 60)
