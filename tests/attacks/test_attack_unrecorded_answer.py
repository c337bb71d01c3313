"""An answer that was kept and never recorded leaves when the question is asked once more.

An answer is on the disk before the ledger says that it leaves. If that entry cannot be written (no
space, another process, a kill), nothing leaves. But the same question under another number was then
answered from the disk without a look at the ledger, even if somebody had altered it meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacked_site import AttackedSite, draw, known, noise_images, program

from fedsight.core.errors import StoreError
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

Attack = Callable[..., AttackedSite]


@pytest.fixture
def site(attack: Attack, tmp_path: Path) -> AttackedSite:
    data = draw(tmp_path / "images", noise_images(8), noise_images(20, 1))
    of = program(data, privacy={"name": "local", "noise_multiplier": 20.0})
    found = attack("site", data, epsilon=8.0)
    assert "error" not in found.join(of)
    found.model = known(of).initial  # type: ignore[attr-defined]
    return found


def asked(site: AttackedSite, attempt: int) -> dict[str, Any]:
    """The same question under a number; the header of the answer."""
    return site.train(site.model, attempt=attempt)[0]  # type: ignore[attr-defined]


def unrecorded(site: AttackedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask while the entry of the release cannot be written."""
    append = Ledger.append

    def full(self: Ledger, entry: LedgerEntry, *limits: Any, **more: Any) -> LedgerEntry:
        if entry.kind == "released":
            raise StoreError("the disk is full", "free some space")
        return append(self, entry, *limits, **more)

    with monkeypatch.context() as disk:
        disk.setattr(Ledger, "append", full)
        assert "error" in asked(site, 1)


def alter(site: AttackedSite) -> None:
    table = sqlite3.connect(site.home / "ledger.sqlite")
    table.execute("DROP TRIGGER no_delete")
    table.execute("DELETE FROM entries WHERE number = 1")
    table.commit()
    table.close()


def releases(site: AttackedSite) -> int:
    return sum(entry.kind == "released" for entry in Ledger(site.home).entries())


def test_it_leaves_past_an_altered_ledger_where_the_ledger_is_not_asked(
    site: AttackedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "append_new", lambda self, entry: None)
    unrecorded(site, monkeypatch)
    alter(site)
    assert "error" not in asked(site, 2)


def test_ours_releases_nothing_past_an_altered_ledger(
    site: AttackedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrecorded(site, monkeypatch)
    alter(site)
    assert "ledger was altered" in asked(site, 2)["error"]


def test_what_leaves_late_is_recorded_once(
    site: AttackedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrecorded(site, monkeypatch)
    assert releases(site) == 1, "the declaration's"
    for attempt in (2, 3, 4):
        assert "error" not in asked(site, attempt)
        assert releases(site) == 2
