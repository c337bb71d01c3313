"""A coordinator proposes again and again, and each time a site reads its whole ledger, locked.

The ledger grows with every question over all runs. All of its entries were read, twice, at each
proposal: with 50,000 of them that took longer than other processes of the site wait for the lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, noise_images, program

from fedsight.deploy.site.enforcement import ContractEnforcement
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]
PROPOSALS = 10


def read(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries a site reads at each of some proposals."""
    images = draw(tmp_path / "images", noise_images(6))
    site, of = attack("site", images), program(images)
    found, decode = [], LedgerEntry.decode
    decoded: list[str] = []

    def counting(text: str) -> LedgerEntry:
        decoded.append(text)
        return decode(text)

    monkeypatch.setattr(LedgerEntry, "decode", counting)
    for number in range(PROPOSALS):
        before = len(decoded)
        assert "error" not in site.join(of, f"run{number % 2}")
        found.append(len(decoded) - before)
    return found


def test_every_proposal_reads_the_whole_ledger_where_it_is_opened_anew(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContractEnforcement, "_known_ledger", lambda self: Ledger(self._home))
    found = read(attack, tmp_path, monkeypatch)
    assert found == [2 * number for number in range(PROPOSALS)], "a question and an answer each"


def test_ours_reads_an_entry_once_in_a_job(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(attack, tmp_path, monkeypatch) == [0] * PROPOSALS, "they are its own"


def test_ours_sees_what_another_process_writes_or_alters_between_two_proposals(
    attack: Attack, tmp_path: Path
) -> None:
    images = draw(tmp_path / "images", noise_images(6))
    site, of = attack("site", images, attempts=1), program(images)
    assert "error" not in site.join(of, "run1")
    Ledger(site.home).append(LedgerEntry("clock"))
    assert "error" not in site.join(of, "run2")
    assert [entry.number for entry in Ledger(site.home).entries()] == [1, 2, 3, 4, 5]
    table = sqlite3.connect(site.home / "ledger.sqlite")
    table.execute("DROP TRIGGER no_update")
    table.execute("UPDATE entries SET body = replace(body, 'run1', 'run3') WHERE number = 1")
    table.commit()
    table.close()
    assert "ledger was altered: entry 1" in site.join(of, "run4")["error"]
    site.restart()
    assert "ledger was altered: entry 1" in site.join(of, "run4")["error"]
