"""A coordinator proposes again and again, and each time a site reads its whole ledger, locked.

The ledger grows with every question over all runs. All of its entries were read, twice, at each
proposal: with 50,000 of them that took longer than other processes of the site wait for the lock.
Later their hashes were computed again for each entry that was added: 0.4 seconds of computing and
holding the lock for each of several entries in a round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from attacked_site import AttackedSite, draw, noise_images, program

from fedsight.deploy.site.enforcement import ContractEnforcement
from fedsight.governance import ledger_file
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
from fedsight.governance.ledger_file import Mark

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
    first, *others = found
    each = others[0]
    assert first == 0
    assert others == [each * number for number in range(1, PROPOSALS)]
    assert each >= 2, "a question and an answer, each time that the ledger is opened"


def test_ours_reads_an_entry_once_in_a_job(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(attack, tmp_path, monkeypatch) == [0] * PROPOSALS, "they are its own"


def hashed(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many hashes a site computes at each of some proposals."""
    images = draw(tmp_path / "images", noise_images(6))
    site, of = attack("site", images), program(images)
    found, hash, computed = [], ledger_file.chain_hash, [0]

    def counting(previous: str, body: str) -> str:
        computed[0] += 1
        return hash(previous, body)

    monkeypatch.setattr(ledger_file, "chain_hash", counting)
    for number in range(PROPOSALS):
        before = computed[0]
        assert "error" not in site.join(of, f"run{number % 2}")
        found.append(computed[0] - before)
    return found


def test_every_proposal_checks_the_whole_ledger_where_nobody_looks_whether_it_was_changed(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mark, "__eq__", lambda *_: False)
    found = hashed(attack, tmp_path, monkeypatch)
    assert found == sorted(found)
    assert found[-1] > 2 * 2 * (PROPOSALS - 1), "all entries, more than once"


def test_ours_computes_a_hash_for_each_entry_that_it_writes(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hashed(attack, tmp_path, monkeypatch)[1:] == [2] * (PROPOSALS - 1)


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
