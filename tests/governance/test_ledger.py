"""The site's ledger: every change is detected, every question is charged, a crash loses nothing."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsight.core.errors import DeployError, FedSightError, StoreError
from fedsight.core.files import write_atomically
from fedsight.governance import entries, ledger_file
from fedsight.governance.entries import GENESIS, EntryKind, LedgerEntry, canonical, chain_hash
from fedsight.governance.ledger import DAY_REFUSALS, NO_FURTHER, Ledger, Limit, SumLimit
from fedsight.governance.ledger_file import LedgerAlteredError, LedgerFile
from fedsight.privacy.accounting import spent
from fedsight.privacy.event import gaussian, poisson

NOISE = {"kind": "gaussian", "noise": 2.0, "neighbours": "add_remove"}


def steps(events: list[tuple[Mapping[str, Any], int]], delta: float) -> float:
    """An accountant that adds up 1 / noise over the events."""
    return sum(count / float(event["noise"]) for event, count in events)


def update(round: int, **changes: Any) -> LedgerEntry:
    facts: dict[str, Any] = {
        **{"kind": "update", "run": "run1", "program": "f" * 64, "round": round},
        **{"bytes": 4000, "sha256": f"{round:064x}", "data_set": "images"},
    }
    return LedgerEntry(**{**facts, **changes})


def noisy(round: int, **changes: Any) -> LedgerEntry:
    return update(round, **{"event": NOISE, "enforced": True, **changes})


def written(home: Path, count: int) -> Ledger:
    home.mkdir(exist_ok=True)
    ledger = Ledger(home, steps)
    for round in range(1, count + 1):
        ledger.append(noisy(round))
    return ledger


def rewrite(home: Path, *commands: tuple[str, tuple[Any, ...]]) -> None:
    """Change the table directly, without its triggers."""
    table = sqlite3.connect(home / "ledger.sqlite")
    for name in ("no_update", "no_delete", "at_the_end"):
        table.execute(f"DROP TRIGGER {name}")
    for command, values in commands:
        table.execute(command, values)
    table.commit()
    table.close()


def body(home: Path, number: int) -> str:
    table = sqlite3.connect(home / "ledger.sqlite")
    ((text,),) = table.execute("SELECT body FROM entries WHERE number = ?", (number,))
    table.close()
    return str(text)


# What the ledger keeps


def test_entries_come_back_as_they_were_written(tmp_path: Path) -> None:
    ledger = written(tmp_path, 3)
    assert ledger.append(update(4, kind="figures", asked_by=("anna",), protections=("x", "y")))
    found = Ledger(tmp_path, steps).entries()
    assert [one.number for one in found] == [1, 2, 3, 4]
    assert found == ledger.entries()
    assert found[0].event == NOISE
    assert (found[3].asked_by, found[3].protections) == (("anna",), ("x", "y"))
    assert all(one.written_at.utcoffset() == timedelta(0) for one in found)


def refused(program: int, why: str = "no room", by: str = "anna") -> LedgerEntry:
    return LedgerEntry("refused", run="run1", program=f"{program:064x}", why=why, asked_by=(by,))


def test_refused_programs_have_a_bounded_number_of_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator chooses how many programs there are: an operator's real ones must not be
    lost among those of another one, nor the ledger grow for ever."""
    day = datetime(2026, 1, 1, 12, tzinfo=UTC)
    monkeypatch.setattr(entries, "now", lambda: day)
    ledger = Ledger(tmp_path, steps)
    for turn in range(2):
        for program in range(2 * DAY_REFUSALS):
            ledger.append_refusal(refused(program))
        ledger = Ledger(tmp_path, steps)
        assert ledger.head[0] == DAY_REFUSALS + 1, turn
    ledger.append_refusal(refused(1, by="bob"))
    found = [(one.program, one.why, one.asked_by) for one in ledger.entries()]
    assert found[0] == (f"{0:064x}", "no room", ("anna",))
    assert found[-2:] == [("", NO_FURTHER, ("anna",)), (f"{1:064x}", "no room", ("bob",))]
    day += timedelta(days=1)
    ledger.append_refusal(refused(1))
    ledger.append_refusal(refused(1, "epsilon is spent"))
    ledger.append_refusal(refused(2 * DAY_REFUSALS))
    found = [(one.program, one.why, one.asked_by) for one in ledger.entries()[DAY_REFUSALS + 2 :]]
    assert found == [
        (f"{1:064x}", "epsilon is spent", ("anna",)),
        (f"{2 * DAY_REFUSALS:064x}", "no room", ("anna",)),
    ], "what was recorded once is not recorded again"


def test_threads_may_share_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site records a refusal while it works on an answer."""
    ledger = written(tmp_path, 3)
    counting = threading.Event()

    class Watched(defaultdict[Any, Any]):
        """Lets the other thread run between two of its keys."""

        def __iter__(self) -> Iterator[Any]:
            for key in super().__iter__():
                counting.set()
                other.join(0.2)
                yield key

    def refuse() -> None:
        counting.wait(60)
        ledger.append_refusal(refused(1))

    monkeypatch.setattr(ledger, "_asked", Watched(list, ledger._asked))
    other = threading.Thread(target=refuse)
    other.start()
    assert ledger.updates("run1") == 0  # none has been released
    other.join(60)
    assert [one.kind for one in Ledger(tmp_path, steps).entries()] == [*["update"] * 3, "refused"]


def test_only_the_owner_can_read_the_ledger(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        written(tmp_path, 1)
    finally:
        os.umask(before)
    for name in ("ledger.sqlite", "ledger.head"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.head"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_ledger_that_others_may_read_is_refused_with_its_mode(
    tmp_path: Path, name: str, mode: int
) -> None:
    ledger = written(tmp_path, 1)
    (tmp_path / name).chmod(mode)
    for use in (lambda: Ledger(tmp_path), lambda: ledger.append(noisy(2))):
        with pytest.raises(DeployError, match=rf"{name} has the mode {mode:04o}"):
            use()


def test_the_table_is_append_only(tmp_path: Path) -> None:
    written(tmp_path, 2)
    table = sqlite3.connect(tmp_path / "ledger.sqlite")
    for command in (
        "UPDATE entries SET body = '{}' WHERE number = 1",
        "DELETE FROM entries WHERE number = 2",
        "INSERT INTO entries VALUES (7, '{}', 'x')",
        "INSERT OR REPLACE INTO entries VALUES (2, '{}', 'x')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="the ledger is append-only"):
            table.execute(command)
    table.close()


def test_every_question_is_charged_whatever_its_answer(tmp_path: Path) -> None:
    """Equal answers cost, too: that they are equal would otherwise be told for nothing."""
    ledger = written(tmp_path, 2)
    again = ledger.append(noisy(2))
    assert again.number == 3
    assert Ledger(tmp_path, steps).append(noisy(2)).number == 4
    assert ledger.append(noisy(2, run="run2")).number == 5
    assert ledger.spent("images", 1e-5) == 2.5


def test_what_is_released_was_charged_before_and_costs_nothing_more(tmp_path: Path) -> None:
    ledger = written(tmp_path, 1)
    ledger.append(update(1, kind="released"))
    assert ledger.spent("images", 1e-5) == 0.5


def asked(attempt: int, question: str, **changes: Any) -> LedgerEntry:
    return noisy(changes.pop("round", 1), attempt=attempt, question=question, **changes)


def test_an_attempt_has_one_question(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, steps)
    ledger.append(asked(1, "a"), attempts=9)
    ledger.append(asked(2, "b"), attempts=9)
    ledger.append(asked(1, "a"), attempts=9)  # its answer was lost
    for other in (ledger, Ledger(tmp_path, steps)):
        with pytest.raises(DeployError, match=r"contract\.attempts: the update of round 1 was .*"):
            other.append(asked(1, "b"), attempts=9)
    for changes in ({"run": "run2"}, {"round": 2}, {"program": "e" * 64}, {"kind": "figures"}):
        ledger.append(asked(1, "b", **changes), attempts=9)


def test_a_round_is_asked_for_only_so_often(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, steps)
    for attempt in (1, 2, 3):
        ledger.append(asked(attempt, str(attempt)), attempts=3)
    for question in ("4", "3"):
        with pytest.raises(DeployError, match=r"was asked for 3 times, and the limit is 3"):
            Ledger(tmp_path, steps).append(asked(4, question), attempts=3)
    ledger.append(asked(4, "4"), attempts=4)


@pytest.mark.parametrize("kind", ["losses", "scores"])
def test_sums_for_calibration_are_named_by_what_they_are_for(
    tmp_path: Path, kind: EntryKind
) -> None:
    ledger = Ledger(tmp_path, steps)
    ledger.append(asked(1, "a", kind=kind, round=0), attempts=1)
    why = r"the sums for calibration of this run were asked for once, and the limit is 1"
    with pytest.raises(DeployError, match=why):
        ledger.append(asked(2, "a", kind=kind, round=0), attempts=1)


@pytest.mark.parametrize("kinds", [("losses", "scores"), ("scores", "losses")])
def test_losses_and_scores_of_a_run_are_of_one_model(
    tmp_path: Path, kinds: tuple[EntryKind, EntryKind]
) -> None:
    def ask(kind: EntryKind, model: str, run: str = "run", question: str = "") -> None:
        question = question or kind + model
        entry = asked(1, question, kind=kind, round=0, model=model, run=run)
        Ledger(tmp_path, steps).append(entry)

    ask(kinds[0], "a")
    for kind in kinds:
        with pytest.raises(DeployError, match=r"another model of this run"):
            ask(kind, "b")
    ask(kinds[1], "a")
    with pytest.raises(DeployError, match=r"at another temperature"):
        ask("scores", "a", question="hotter")
    ask(kinds[0], "a")
    ask(kinds[1], "b", run="run2")


def summed(list: str, run: str = "run", round: int = 1, **changes: Any) -> LedgerEntry:
    return LedgerEntry("sum", run, "f" * 64, round, question=list, data_set="images", **changes)


def test_a_round_of_a_program_is_summed_over_so_many_lists(tmp_path: Path) -> None:
    ledger, once = Ledger(tmp_path, steps), SumLimit(round=1)
    ledger.append_new(summed("all"), once)
    ledger.append_new(summed("all", "run2"), once)
    for other in (ledger, Ledger(tmp_path, steps)):
        for run in ("run", "run2"):
            with pytest.raises(DeployError, match=r"contract\.sums: round 1 of this program was "):
                other.append_new(summed("fewer", run), once)
    ledger.append_new(summed("fewer"), SumLimit(round=2))
    with pytest.raises(DeployError, match=r"over 2 other lists of sites before, and 2 may be"):
        ledger.check_sum(summed("more"), SumLimit(round=2))
    ledger.append(summed("more"))
    assert ledger.spent("images", 1e-5) == 0.0


def test_all_rounds_of_a_data_set_are_summed_over_so_many_lists(tmp_path: Path) -> None:
    ledger, once = Ledger(tmp_path, steps), SumLimit(all=1)
    ledger.append_new(summed("all"), once)
    ledger.append_new(summed("all", round=2), once)
    for other in (ledger, Ledger(tmp_path, steps)):
        with pytest.raises(DeployError, match=r"contract\.lists: updates were summed over 1 other"):
            other.append_new(summed("fewer", round=3), once)
    ledger.append_new(replace(summed("fewer"), data_set="others"), once)
    ledger.append_new(summed("fewer", round=3), SumLimit(all=2))


# What the entries cost


def test_costs_add_up_over_runs_and_processes_for_each_data_set(tmp_path: Path) -> None:
    ledger = written(tmp_path, 3)
    ledger.append(noisy(1, run="run2", times=10))
    ledger.append(noisy(1, run="run3", data_set="others"))
    again = Ledger(tmp_path, steps)
    assert again.spent("images", 1e-5) == ledger.spent("images", 1e-5) == 6.5
    assert again.spent("others", 1e-5) == 0.5
    assert again.spent("new", 1e-5) == 0.0
    assert again.would_spend(noisy(4, times=3), 1e-5) == 8.0
    assert again.spent("images", 1e-5) == 6.5


def test_an_update_without_noise_has_no_finite_cost(tmp_path: Path) -> None:
    ledger = written(tmp_path, 1)
    ledger.append(update(0, kind="declaration"))
    ledger.append(update(1, kind="figures"))
    assert ledger.spent("images", 1e-5) == 0.5, "only updates depend on training images"
    ledger.append(update(2))
    assert ledger.spent("images", 1e-5) == math.inf
    with pytest.raises(
        DeployError, match=r"contract\.epsilon: an earlier update of these images left"
    ):
        ledger.append(noisy(3), Limit(100.0, 1e-5, trusted=True))


def test_promised_noise_counts_only_if_it_is_trusted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, steps)
    ledger.append(noisy(1, enforced=False))
    assert ledger.spent("images", 1e-5) == math.inf
    assert ledger.spent("images", 1e-5, trusted=True) == 0.5


def test_promised_noise_is_fresh_each_time_and_costs_each_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, steps)
    for _ in range(2):
        ledger.append(noisy(1, enforced=False))
    assert ledger.spent("images", 1e-5, trusted=True) == 1.0


def test_an_entry_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    ledger, limit = Ledger(tmp_path, steps), Limit(1.2, 1e-5, trusted=False)
    for round in (1, 2):
        ledger.append(noisy(round), limit)
    with pytest.raises(DeployError) as caught:
        ledger.append(noisy(3), limit)
    assert "epsilon 1.5 at delta 1e-05; 1.2 is permitted and 1 is spent" in caught.value.cause
    assert "contract.epsilon" in caught.value.cause
    with pytest.raises(DeployError, match="the update would leave without noise"):
        ledger.append(update(3), limit)
    assert len(Ledger(tmp_path).entries()) == 2


def test_two_jobs_cannot_spend_the_same_epsilon(tmp_path: Path) -> None:
    limit = Limit(1.2, 1e-5, trusted=False)
    one, other = Ledger(tmp_path, steps), Ledger(tmp_path, steps)
    one.append(noisy(1), limit)
    other.append(noisy(1, run="run2"), limit)
    with pytest.raises(DeployError, match="is permitted"):
        one.append(noisy(2), limit)


def test_epsilon_is_the_accountants_over_all_runs_and_restarts(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    event = gaussian(4.0).table()
    for run in ("one", "two"):
        ledger = Ledger(tmp_path)
        for round in range(1, 6):
            ledger.append(noisy(round, run=run, event=event))
    assert Ledger(tmp_path).spent("images", 1e-5) == pytest.approx(3.341409, abs=1e-3)
    one = Limit(3.341409 + 1e-3, 1e-5, trusted=False)
    with pytest.raises(DeployError, match=r"3\.34241 is permitted"):
        ledger.append(noisy(6, run="two", event=event), one)
    ledger.append(noisy(6, run="two", event=poisson(1.0, 0.01).table(), times=100))
    mixed = [(gaussian(4.0), 10), (poisson(1.0, 0.01), 100)]
    assert Ledger(tmp_path).spent("images", 1e-5) == pytest.approx(spent(mixed, 1e-5), abs=2e-3)


@pytest.mark.parametrize("event", [{}, {"kind": "gaussian"}, {**NOISE, "noise": -1.0}])
def test_an_invalid_event_is_refused(tmp_path: Path, event: Mapping[str, Any]) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(FedSightError):
        ledger.append(noisy(1, event=event), Limit(9.0, 1e-5, trusted=False))
    assert Ledger(tmp_path).entries() == []


# Clocks


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    monkeypatch.setattr(entries, "now", lambda: moment)


def test_nothing_is_written_when_the_clock_has_gone_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon = datetime(2030, 5, 1, 12, tzinfo=UTC)
    at(monkeypatch, noon)
    ledger = written(tmp_path, 1)
    at(monkeypatch, noon - timedelta(minutes=4))
    ledger.append(noisy(2))
    at(monkeypatch, noon - timedelta(minutes=10))
    with pytest.raises(StoreError, match="clock says 2030-05-01 11:50 UTC, but entry 2") as caught:
        ledger.append(noisy(3))
    assert "--clock" in caught.value.cure
    assert Ledger(tmp_path, steps).append(LedgerEntry("clock")).number == 3
    assert ledger.append(noisy(3)).number == 4
    assert ledger.spent("images", 1e-5) == 1.5


# Attacks


def attack(number: int, *commands: tuple[str, tuple[Any, ...]]) -> Any:
    return number, lambda home: rewrite(home, *commands)


def edit_a_byte(home: Path) -> None:
    path = home / "ledger.sqlite"
    data = path.read_bytes()
    where = data.index(b'"round":3')
    path.write_bytes(data[:where] + b'"round":9' + data[where + 9 :])


def swap(home: Path) -> None:
    change = "UPDATE entries SET number = ? WHERE number = ?"
    rewrite(home, (change, (99, 2)), (change, (2, 3)), (change, (3, 99)))


def forge(home: Path) -> None:
    """Make entry 3 cheaper, and recompute all hashes after it."""
    texts = [body(home, number) for number in range(1, 6)]
    texts[2] = texts[2].replace('"noise":2.0', '"noise":9.0')
    previous, commands = GENESIS, []
    for number, text in enumerate(texts, 1):
        previous = chain_hash(previous, text)
        values = (text, previous, number)
        commands.append(("UPDATE entries SET body = ?, hash = ? WHERE number = ?", values))
    rewrite(home, *commands)


def append_two(home: Path) -> None:
    head = json.loads((home / "ledger.head").read_text())
    written(home, 7)
    (home / "ledger.head").write_text(json.dumps(head))


ATTACKS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "edit a byte": (3, edit_a_byte),
    "swap two": (2, swap),
    "delete the last": attack(5, ("DELETE FROM entries WHERE number = 5", ())),
    "delete the first": attack(1, ("DELETE FROM entries WHERE number = 1", ())),
    "delete all": attack(1, ("DELETE FROM entries", ())),
    "delete the ledger": (1, lambda home: (home / "ledger.sqlite").unlink()),
    "delete the head": (1, lambda home: (home / "ledger.head").unlink()),
    "garble the head": (1, lambda home: (home / "ledger.head").write_text("[5")),
    "empty the head": (1, lambda home: (home / "ledger.head").write_text("")),
    "forge all from one on": (5, forge),
    "append": (7, append_two),
    "no text": attack(2, ("UPDATE entries SET body = '' WHERE number = 2", ())),
}


@pytest.mark.parametrize(("number", "change"), ATTACKS.values(), ids=ATTACKS.keys())
def test_an_altered_ledger_is_refused_at_the_entry(
    tmp_path: Path, number: int, change: Callable[[Path], None]
) -> None:
    ledger = written(tmp_path, 5)
    change(tmp_path)
    with pytest.raises(LedgerAlteredError, match=f"was altered: entry {number} ") as caught:
        Ledger(tmp_path, steps)
    assert caught.value.number == number
    with pytest.raises(LedgerAlteredError):  # a process that was already running detects it too
        ledger.append(noisy(6))
    assert "/" not in f"{caught.value.cause}{caught.value.cure}", "the message may leave the site"


def with_times_put_back(home: Path) -> None:
    before = (home / "ledger.sqlite").stat()
    edit_a_byte(home)
    os.utime(home / "ledger.sqlite", ns=(before.st_atime_ns, before.st_mtime_ns))


def at_a_tick_of_the_clock(home: Path) -> None:
    """A kernel's times may be those of its ticks, up to ten milliseconds apart."""
    edit_a_byte(home)
    tick = time.time_ns() // 10_000_000 * 10_000_000
    os.utime(home / "ledger.sqlite", ns=(tick, tick))


def by_sqlite_with_times_put_back(home: Path) -> None:
    before = (home / "ledger.sqlite").stat()
    rewrite(home, ("UPDATE entries SET body = '' WHERE number = 3", ()))
    os.utime(home / "ledger.sqlite", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("ticked", [True, False])
@pytest.mark.parametrize(
    "change",
    [edit_a_byte, with_times_put_back, at_a_tick_of_the_clock, by_sqlite_with_times_put_back],
)
def test_a_process_that_runs_sees_any_change_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], ticked: bool
) -> None:
    """Unless the kernel's clock has not ticked since its own entry and times are put back: then the
    next one sees it."""
    mark = LedgerFile._mark
    if not ticked:
        monkeypatch.setattr(LedgerFile, "_mark", lambda self: mark(self)._replace(changed=0))
    ledger = written(tmp_path, 5)
    change(tmp_path)
    if not ticked and change is with_times_put_back:
        assert ledger.append(noisy(6)).number == 6
    else:
        with pytest.raises(LedgerAlteredError, match="was altered: entry 3 "):
            ledger.append(noisy(6))
    with pytest.raises(LedgerAlteredError, match="was altered: entry 3 "):
        Ledger(tmp_path, steps)


def test_what_somebody_changes_while_an_entry_is_written_is_seen_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, encode = written(tmp_path, 5), LedgerEntry.encode

    def meanwhile(entry: LedgerEntry) -> str:
        by_sqlite_with_times_put_back(tmp_path)
        return encode(entry)

    with monkeypatch.context() as patch:
        patch.setattr(LedgerEntry, "encode", meanwhile)
        ledger.append(noisy(6))
    with pytest.raises(LedgerAlteredError, match="was altered: entry 3 "):
        ledger.append(noisy(7))


def test_an_entry_is_checked_once_by_the_process_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, hashed, hash = written(tmp_path, 20), [0], ledger_file.chain_hash

    def counted(previous: str, body: str) -> str:
        hashed[0] += 1
        return hash(previous, body)

    monkeypatch.setattr(ledger_file, "chain_hash", counted)
    for round in range(21, 31):
        ledger.append(noisy(round))
        ledger.refresh()
    assert hashed[0] == 10, "each entry as it is written"
    other = Ledger(tmp_path, steps)
    assert hashed[0] == 10 + 30
    other.append(noisy(31))  # the file has only just been changed
    other.append(noisy(32))
    assert hashed[0] == 40 + 30 + 2
    assert ledger.append(noisy(33)).number == 33, "after checking what the other one wrote"
    assert hashed[0] == 72 + 32 + 1


def test_an_older_copy_is_detected_by_the_head(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    written(home, 3)
    shutil.copytree(home, copy)
    ledger = written(home, 2)
    shutil.copy(copy / "ledger.sqlite", home / "ledger.sqlite")
    with pytest.raises(LedgerAlteredError, match="entry 4 is missing: there were 5"):
        Ledger(home, steps)
    # If both files are replaced, only a copy of the head kept elsewhere reveals it ...
    shutil.copy(copy / "ledger.head", home / "ledger.head")
    assert Ledger(home, steps).head != ledger.head
    with pytest.raises(
        LedgerAlteredError, match="entry 4 is missing"
    ):  # ... or a process that has seen more
        ledger.append(noisy(6))


def test_a_file_that_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 1)
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="ledger cannot be read or written") as caught:
        Ledger(tmp_path)
    assert "nothing leaves the site" in caught.value.cure


def test_a_ledger_that_cannot_be_written_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = written(tmp_path, 1)

    def full(*_: Any) -> None:
        raise StoreError("the disk is full", "")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "write_atomically", full)
        with pytest.raises(StoreError, match="full"):
            ledger.append(noisy(2))
    assert ledger_file.write_atomically is write_atomically
    assert ledger.append(noisy(3)).number == 3, (
        "an update that was not sent is charged all the same"
    )
    (tmp_path / "ledger.sqlite").rename(tmp_path / "kept")
    (tmp_path / "ledger.sqlite").mkdir(mode=0o700)
    with pytest.raises(StoreError, match="cannot be read or written"):
        ledger.append(noisy(4))


entry_values = st.builds(
    LedgerEntry,
    kind=st.sampled_from(["update", "figures", "declaration", "released"]),
    run=st.text(max_size=5),
    round=st.integers(0, 10**9),
    sha256=st.text(max_size=5),
    asked_by=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    event=st.none() | st.dictionaries(st.text(max_size=3), st.floats(0, 9), max_size=2),
    enforced=st.booleans(),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(entry_values, max_size=6), st.data())
def test_any_entries_are_kept_and_any_change_is_detected(
    tmp_path_factory: pytest.TempPathFactory, values: list[LedgerEntry], data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(home, steps)
    for value in values:
        ledger.append(value)
    found = Ledger(home, steps).entries()

    facts = [(one.asked, one.sha256, canonical(one.event)) for one in found]
    assert facts == [(one.asked, one.sha256, canonical(one.event)) for one in values]
    if not found:
        return
    number = data.draw(st.integers(1, len(found)))
    text = body(home, number)
    place = data.draw(st.integers(0, len(text) - 1))
    other = chr((ord(text[place]) + data.draw(st.integers(1, 90))) % 128)
    changed = text[:place] + other + text[place + 1 :]
    rewrite(home, ("UPDATE entries SET body = ? WHERE number = ?", (changed, number)))
    with pytest.raises(LedgerAlteredError) as caught:
        Ledger(home, steps)
    assert caught.value.number == number


# Real processes


WRITER = """
import sys
from pathlib import Path
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger
home, run, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger(home)
for round in range(1, count + 1):
    entry = ledger.append(LedgerEntry("update", run=run, round=round, sha256=f"{run}{round}"))
    print(entry.number, flush=True)  # from here on the update may leave
"""


def writer(home: Path, run: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(home), run, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_entries_reported_as_written_survive_kill_9(tmp_path: Path) -> None:
    draw, reported = random.Random(5), 0
    for attempt in range(8):
        process = writer(tmp_path, f"run{attempt}", 10**6)
        assert process.stdout is not None
        for _ in range(draw.randint(1, 12)):
            reported = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split(b"\n")[:-1]
        process.stdout.close()
        process.wait()
        reported = int(rest[-1]) if rest else reported
        found = Ledger(tmp_path).entries()
        assert reported <= len(found) <= reported + 1
        assert [one.number for one in found] == list(range(1, len(found) + 1))


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    writers = [writer(tmp_path, f"run{number}", 15) for number in range(3)]
    numbers = []
    for process in writers:
        out, _ = process.communicate()
        assert process.returncode == 0
        numbers += [int(line) for line in out.split()]
    assert sorted(numbers) == list(range(1, 46))
    assert len(Ledger(tmp_path).entries()) == 45


def test_personal_figures_are_marked_and_entries_without_the_mark_stay_readable() -> None:
    plain = LedgerEntry("figures", run="r", time="2026-11-29T06:00:00+00:00", number=1)
    assert "personal" not in plain.encode()
    assert LedgerEntry.decode(plain.encode()) == plain
    personal = replace(plain, personal=True)
    assert LedgerEntry.decode(personal.encode()) == personal
    with pytest.raises(ValueError, match="canonical"):
        LedgerEntry.decode(personal.encode().replace('"personal":true', '"personal":false'))
