"""Programs that wait for the approval of a site's owner, and what the owner decides."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import done, refused
from site_folders import OPERATOR, ask, make_site, some_program

from fedsight.core.errors import DeployError, StoreError
from fedsight.deploy.membership import presence
from fedsight.deploy.site import approvals
from fedsight.governance.contract import Contract
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

WAITS = "waits for the approval"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_site(tmp_path / "lyon")


def test_by_default_nobody_has_to_approve_anything() -> None:
    assert Contract().approval is False


def test_a_program_waits_until_it_is_approved_and_that_holds(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = some_program()
    assert WAITS in ask(home, program)
    first = approvals.waiting(home, Ledger(home))
    assert WAITS in ask(home, program)
    assert approvals.waiting(home, Ledger(home)) == first, "it is not written at each question"
    monkeypatch.setattr(approvals, "REPEATED", 0.0)
    assert WAITS in ask(home, program)
    (one,) = approvals.waiting(home, Ledger(home))
    assert (one.name, one.run, one.asked_by) == ("lungs", "run1", (OPERATOR,))
    assert one.fingerprint == program.fingerprint
    assert one.since < one.last
    assert 'name = "mlp"' in one.settings, "all settings, in plain text"
    entry = approvals.decide(home, program.fingerprint, approve=True)
    assert (entry.kind, entry.run, entry.asked_by) == ("approved", "run1", (OPERATOR,))
    assert ask(home, program) == ""
    assert approvals.waiting(home, Ledger(home)) == []
    (done_one,) = approvals.decided(home, Ledger(home))
    assert done_one.approved
    assert done_one.request == one
    assert Ledger(home).spent("images", 1e-5) == 0.0, "a decision costs nothing"


def test_a_refusal_is_final_and_outdoes_an_approval(home: Path) -> None:
    program = some_program()
    ask(home, program)
    approvals.decide(home, program.fingerprint, approve=True)
    approvals.decide(home, program.fingerprint, approve=False)
    assert "has refused this program" in ask(home, program)
    with pytest.raises(DeployError, match="that is final"):
        approvals.decide(home, program.fingerprint, approve=True)
    again = approvals.decide(home, program.fingerprint, approve=False)
    kinds = [entry.kind for entry in Ledger(home).entries()]
    assert kinds == ["approved", "declined"], "the same decision is written once"
    assert again.number == 2
    assert WAITS in ask(home, some_program(seed=1)), "another seed, another program"


def test_a_program_can_be_approved_before_anybody_asks(home: Path) -> None:
    program = some_program()
    approvals.decide(home, program.fingerprint, approve=True)
    assert ask(home, program) == ""


def test_the_server_learns_that_something_was_decided_and_nothing_else(
    home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sites"

    def beat() -> presence.Presence:
        heartbeat = presence.Heartbeat("t", "p", decided=approvals.mark(home))
        found = presence.Heartbeat.decode(heartbeat.encode())
        presence.record(folder, "lyon", "p", None)
        presence.record_decision(folder, "lyon", found.decided)
        one = presence.presence(folder, "lyon")
        assert one is not None
        return one

    assert beat().decisions == ()
    marks = set()
    for seed in range(5):
        approvals.decide(home, some_program(seed=seed).fingerprint, approve=seed % 2 == 0)
        marks.add(beat().decided)
    assert len(marks) == 5
    last = beat()
    assert last.since < last.decisions[0], "it has not restarted"
    assert last.settled


def test_decisions_of_one_sitting_are_one_and_come_to_bear_at_once_and_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "FREE_RESTARTS", 1)
    began = now = time.time()
    monkeypatch.setattr(presence, "time", SimpleNamespace(time=lambda: now))
    presence.record(tmp_path, "lyon", "p", None)

    def decides(mark: object) -> presence.Presence:
        presence.record_decision(tmp_path, "lyon", str(mark))
        presence.record(tmp_path, "lyon", "p", None)
        one = presence.presence(tmp_path, "lyon")
        assert one is not None
        return one

    now += 1
    assert decides("first").decided_since(began), "at once"
    for number in range(6):  # programs, one after the other
        now += 1
        waits = decides(number)
        assert waits.is_deciding
        assert waits.decided_since(began), "the first one is not hidden"
        assert not waits.decided_since(began + 1)
        assert waits.settled, "it may join whatever begins for another reason"
    now += presence.MERGED
    assert waits.decided_since(began + 1), "no decision is forgotten"
    # A site that decides all the time has few jobs begun.
    due = set()
    for number in range(1800):
        now += 2
        due.add(decides(f"again {number}").decisions[-1])
    assert len(due) <= 12


def test_the_command_line_shows_what_waits_and_decides(home: Path) -> None:
    assert "No program waits" in done("site", "programs", home).out
    program = some_program()
    ask(home, program)
    shown = done("site", "programs", home, "--settings").out
    assert program.fingerprint in shown
    assert OPERATOR in shown
    assert 'name = "mlp"' in shown
    assert "does not ask" not in done("site", "approve", home, program.fingerprint).out
    lax = make_site(home.with_name("oslo"), approval=False)
    said = done("site", "approve", lax, program.fingerprint).out
    assert "other programs run without your approval" in said
    other = some_program(rounds={"rounds": 77})
    ask(home, other)
    shown = done("site", "programs", home).out
    assert "rounds.rounds: 20 -> 77" in shown, "what differs from the one that was approved"
    assert "Refused" in done("site", "refuse", home, other.fingerprint).out
    table = json.loads(done("site", "programs", home, "--json").out)
    assert table["waiting"] == []
    assert [one["approved"] for one in table["decided"]] == [False, True]
    assert "final" in refused(8, "site", "approve", home, other.fingerprint)
    ledger = json.loads(done("site", "ledger", home, "--json").out)
    assert [one["kind"] for one in ledger["entries"]] == ["approved", "declined"]
    assert ledger["runs"] == [], "nothing left for them"


@pytest.mark.parametrize("text", ["", "f" * 63, "f" * 65, "../../etc/passwd", "g" * 64, "F" * 64])
def test_only_a_whole_fingerprint_is_approved(home: Path, text: str) -> None:
    with pytest.raises(DeployError, match="not the fingerprint"):
        approvals.decide(home, text, approve=True)
    assert Ledger(home).entries() == []


def test_another_user_cannot_decide_although_the_system_would_let_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's files would be unreadable for the site, and it could train no more."""
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(DeployError, match="belongs to another user"):
        approvals.decide(home, "0" * 64, approve=True)
    assert not (home / "ledger.sqlite").exists()


def test_two_who_decide_at_once_leave_one_decision(home: Path) -> None:
    fingerprint = some_program().fingerprint
    said: list[str] = []

    def decide(approve: bool) -> None:
        try:
            said.append(approvals.decide(home, fingerprint, approve).kind)
        except DeployError:
            said.append("final")

    threads = [threading.Thread(target=decide, args=(at % 2 == 0,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 8
    kinds = [entry.kind for entry in Ledger(home).entries()]
    assert kinds in (["declined"], ["approved", "declined"])
    found = Ledger(home).decision(fingerprint)
    assert found is not None
    assert found.kind == "declined"


def test_a_list_that_cannot_be_written_approves_nothing(home: Path) -> None:
    (home / "programs").symlink_to(home.parent)
    assert "is a link" in ask(home, some_program())
    with pytest.raises(StoreError, match="is a link"):
        approvals.decide(home, "0" * 64, approve=True)


def test_a_request_that_is_broken_is_asked_anew(home: Path) -> None:
    program = some_program()
    ask(home, program)
    path = home / "programs" / f"{program.fingerprint}.json"
    for text in ("", "{", "[]", '{"fingerprint": 3}', json.dumps({"fingerprint": "0" * 64})):
        path.write_text(text)
        assert approvals.waiting(home, Ledger(home)) == []
        assert WAITS in ask(home, program)
        assert len(approvals.waiting(home, Ledger(home))) == 1


def test_a_request_that_is_not_repeated_makes_room(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(home, some_program(seed=1))
    monkeypatch.setattr(approvals, "FORGOTTEN", 0.0)
    ask(home, some_program(seed=2))
    monkeypatch.undo()
    (one,) = approvals.waiting(home, Ledger(home))
    assert one.fingerprint == some_program(seed=2).fingerprint


def test_the_ledger_tells_the_decision_of_each_program(home: Path) -> None:
    ledger = Ledger(home)
    for number in range(3):
        kind = "approved" if number else "declined"
        ledger.append_decision(LedgerEntry(kind, program=str(number) * 64))  # type: ignore[arg-type]
    other = Ledger(home)
    assert [one.kind for one in other.decisions()] == ["declined", "approved", "approved"]
    assert other.decision("7" * 64) is None
