"""The site's ledger: what left the site over all runs, and how much epsilon it has cost.

A question is charged, on the disk, before the work on its answer begins. If the process crashes in
between, a round may be charged although nothing was sent, but never the reverse.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from fedsight.core.errors import DeployError, StoreError
from fedsight.governance import entries
from fedsight.governance.costs import Accountant, Costs, is_charged
from fedsight.governance.entries import CALIBRATION, DECISIONS, SUMS, LedgerEntry
from fedsight.governance.ledger_file import LedgerFile

CLOCK_TOLERANCE = timedelta(minutes=5)  # how far the clock may go back between two entries
# Entries of one day about programs that were refused to the same operators; one more closes them.
DAY_REFUSALS = 20
NO_FURTHER = "further programs that were refused on this day are only in the site's log"


@dataclass(frozen=True)
class Limit:
    """What all updates of a data set may cost together: `epsilon` at `delta`."""

    epsilon: float
    delta: float
    trusted: bool  # whether noise that the coordinator promises counts


@dataclass(frozen=True)
class SumLimit:
    """Over how many different lists of sites masked updates may be summed; None: any number.

    `round`: those of one round of a program, in all its runs; `all`: those of a data set, in all
    rounds of all programs. `tests`: the same for masked sums over a data set's test images.
    """

    round: int | None = None
    all: int | None = None
    tests: int | None = None


class Ledger:
    """The ledger in a site's folder; opening it reads and checks every entry. Threads may share it:
    a site answers a request while it works on another.

    Raises LedgerAlteredError (a StoreError) if an entry is not as it was written, and StoreError if
    the ledger cannot be read or written.
    """

    def __init__(self, home: Path, accountant: Accountant | None = None) -> None:
        self._home = home
        self._file = LedgerFile(home)
        self._lock = threading.RLock()  # of all that follows
        self._accountant = accountant
        self._asked: defaultdict[tuple[str, str, str, int], list[LedgerEntry]] = defaultdict(list)
        self._last: LedgerEntry | None = None
        self._costs: dict[str, Costs] = {}  # by data set
        # For each data set: exact figures by question, noised and personal ones by entry.
        self._evaluations: defaultdict[str, set[str | int]] = defaultdict(set)
        # Digests of the lists of sites that a round was summed over, by program and round.
        self._sums: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._lists: defaultdict[str, set[str]] = defaultdict(set)  # the same, by data set
        self._test_lists: defaultdict[str, set[str]] = defaultdict(set)  # of test images
        # Programs that were refused and why, by who had asked for them; and how many on a day.
        self._refused: defaultdict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)
        self._refused_on: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._decisions: dict[str, LedgerEntry] = {}  # the owner's last one, by program
        self.refresh()

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last entry. A copy kept elsewhere reveals a rewritten ledger."""
        with self._lock:
            return self._file.number, self._file.hash

    def refresh(self) -> None:
        """Read the entries that were added since, and check that all others are as they were."""
        with self._opened():
            pass

    def entries(self) -> list[LedgerEntry]:
        """All entries, checked."""
        whole = LedgerFile(self._home)  # reads from the first entry on
        with self._opened() as table:
            return list(whole.read(table))

    def append(
        self,
        entry: LedgerEntry,
        limit: Limit | None = None,
        attempts: int | None = None,
        evaluations: int | None = None,
    ) -> LedgerEntry:
        """Write `entry` and return it with its number and time.

        Raises DeployError if the entry would exceed `limit`, if its question was asked `attempts`
        times already or before with other content, or (figures) if it would be another question
        about its round, or one more than `evaluations`; and StoreError if the clock has gone back.
        """
        if limit is not None:  # takes seconds, for which nobody else should wait
            self.would_spend(entry, limit.delta, limit.trusted)
        with self._opened() as table:
            self._check_question(entry, attempts, evaluations)
            if limit is not None:
                self.check_limit(entry, limit)
            return self._written(table, entry)

    def check(self, entry: LedgerEntry, attempts: int | None, evaluations: int | None) -> None:
        """Raise what `append` would raise for this question, which costs no epsilon."""
        with self._opened():
            self._check_question(entry, attempts, evaluations)

    def append_new(self, entry: LedgerEntry, sums: SumLimit | None = None) -> None:
        """Write `entry` unless it is there that this answer to this question was released, or (a
        sum) that the round was summed over these sites in this run.

        The ledger is read either way, and must be intact. Raises DeployError and StoreError as
        `append` does.
        """
        with self._opened() as table:
            if entry.kind in ("sum", "test sum"):
                self.check_sum(entry, sums or SumLimit())
            known = self._asked.get(entry.asked, [])
            if (entry.question, entry.sha256) not in {(one.question, one.sha256) for one in known}:
                self._written(table, entry)

    def append_refusal(self, entry: LedgerEntry) -> None:
        """Write that a program was refused, once for the same program, reason and operators.

        Who asks chooses what a program is, so the same operators get DAY_REFUSALS such entries a
        day, and a last one that says that there were more. Raises StoreError as `append` does.
        """
        with self._opened() as table:
            if (entry.program, entry.why) in self._refused[entry.asked_by]:
                return
            today = self._refused_on[entries.now().date().isoformat(), entry.asked_by]
            if today == DAY_REFUSALS:
                entry = replace(entry, run="", program="", why=NO_FURTHER)
            if today <= DAY_REFUSALS:
                self._written(table, entry)

    def decision(self, program: str) -> LedgerEntry | None:
        """What the owner has decided by hand about the program with this fingerprint, if anything,
        as of the last `refresh`."""
        with self._lock:
            return self._decisions.get(program)

    def decisions(self) -> list[LedgerEntry]:
        """All that the owner has decided by hand about programs, the oldest first."""
        with self._lock:
            return sorted(self._decisions.values(), key=lambda one: one.number)

    def append_decision(self, entry: LedgerEntry) -> LedgerEntry:
        """Write that the owner `approved` or `declined` a program; returns the entry that holds.

        The same decision is written once. Raises DeployError if a program that was declined would
        be approved: that is final. And StoreError as `append` does.
        """
        with self._opened() as table:
            known = self._decisions.get(entry.program)
            if known is None or (known.kind, entry.kind) == ("approved", "declined"):
                return self._written(table, entry)
            if known.kind != entry.kind:
                raise DeployError(
                    f"the program {entry.program} was refused at {known.time}, and that is final",
                    "ask the operator to start it again with another seed: that makes it another "
                    "program, about which you decide anew",
                )
            return known

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The table, for this thread of this process alone: what others have written since is read,
        and all entries are checked."""
        with self._lock, self._file.open() as table:
            for found in self._file.read(table):
                self._remember(found)
            yield table

    def _written(self, table: sqlite3.Connection, entry: LedgerEntry) -> LedgerEntry:
        """`entry` with its number and time, once it is on the disk."""
        now = entries.now()
        if entry.kind != "clock":
            self._check_clock(now)
        number = self._file.number + 1
        entry = replace(entry, number=number, time=now.isoformat(timespec="seconds"))
        self._file.append(table, entry)
        self._remember(entry)
        return entry

    def evaluations(self, data_set: str) -> int:
        """How many sets of figures of the data set have left, over all runs.

        The coordinator chooses how many runs there are, so only this number is a limit. Exact ones
        that are computed again are the same, and count once. Noised ones have other noise, and
        their mean has less; personal ones depend on what the site was trained to in the meantime.
        """
        with self._lock:
            return len(self._evaluations[data_set])

    def updates(self, run: str) -> int:
        """In how many rounds of a run, under all its programs, an update was finished here.

        One that was asked for and abandoned took no time.
        """

        def is_finished(program: str, round: int) -> bool:
            asked, released = (
                {entry.question for entry in self._asked.get((kind, run, program, round), [])}
                for kind in ("update", "released")
            )
            return not asked.isdisjoint(released)

        with self._lock:
            rounds = [
                (program, round)
                for kind, of, program, round in self._asked
                if of == run and kind == "update"
            ]
            return sum(is_finished(*one) for one in rounds)

    def spent(self, data_set: str, delta: float, trusted: bool = False) -> float:
        """Epsilon at `delta` of all updates of the data set so far.

        Infinite if an update left without noise. `trusted`: noise that the coordinator promised
        counts too.
        """
        return self._costs_of(data_set).epsilon(delta, trusted)

    def would_spend(self, entry: LedgerEntry, delta: float, trusted: bool = False) -> float:
        """Epsilon at `delta` of the entry's data set if `entry` left too."""
        costs = self._costs_of(entry.data_set)
        costs.add(entry)
        return costs.epsilon(delta, trusted)

    def _costs_of(self, data_set: str) -> Costs:
        """A copy, since epsilon takes seconds to compute, for which nobody should wait."""
        with self._lock:
            return self._costs.setdefault(data_set, Costs(self._accountant)).copy()

    def check_limit(self, entry: LedgerEntry, limit: Limit) -> None:
        """Raise DeployError if the data set's updates together with `entry` exceed `limit`."""
        would = self.would_spend(entry, limit.delta, limit.trusted)
        if would <= limit.epsilon:
            return
        spent = self.spent(entry.data_set, limit.delta, limit.trusted)
        if math.isinf(spent):
            cause = "an earlier update of these images left without noise that counts"
        elif math.isinf(would):
            cause = "the update would leave without noise that counts"
        else:
            cause = (
                f"this update would raise the cost to epsilon {would:.4g} at delta "
                f"{limit.delta:g}; {limit.epsilon:g} is permitted and {spent:.4g} is spent"
            )
        raise DeployError(
            f"contract.epsilon: {cause}",
            "the site's owner decides: see contract.epsilon in site.toml",
        )

    def check_sum(self, entry: LedgerEntry, limit: SumLimit) -> None:
        """Raise DeployError if a sum over the sites of `entry` would exceed the limit."""
        if entry.kind == "test sum":
            self._check_test_sum(entry, limit.tests)
            return
        with self._lock:
            of_round = set(self._sums.get((entry.program, entry.round), ()))
            of_all = set(self._lists.get(entry.data_set, ()))
        if _exceeds(entry, of_round, limit.round):
            raise DeployError(
                f"contract.sums: round {entry.round} of this program was summed over "
                f"{len(of_round)} other {_lists(of_round)} of sites before, and {limit.round} may "
                "be",
                "the difference of two sums would reveal what the sites that differ contributed. "
                "Repeat the round with the same sites, or start the program with another seed; the "
                "site's owner decides: see contract.sums in site.toml",
            )
        if _exceeds(entry, of_all, limit.all):
            raise DeployError(
                f"contract.lists: updates were summed over {len(of_all)} other {_lists(of_all)} of "
                f"sites before, and {limit.all} may be",
                "sums over other sites could be subtracted from one another. Train with the same "
                "sites as before; the site's owner decides: see contract.lists in site.toml",
            )

    def _check_test_sum(self, entry: LedgerEntry, most: int | None) -> None:
        """The same for sums over test images: the coordinator chooses the model, and may have the
        same one measured in any run of any program."""
        with self._lock:
            known = set(self._test_lists.get(entry.data_set, ()))
        if _exceeds(entry, known, most):
            raise DeployError(
                f"contract.figures_lists: test images were summed over {len(known)} other "
                f"{_lists(known)} of sites before, and {most} may be",
                "the difference of two sums is, exactly, that of the sites that are in only one. "
                "Measure with the same sites as before. If several have joined or left, the owners "
                "of all sites may raise contract.figures_lists; if only one has, its sums come out",
            )

    def _remember(self, entry: LedgerEntry) -> None:
        self._last = entry
        self._asked[entry.asked].append(entry)
        if entry.kind in SUMS:
            same = entry.number if _varies(entry) else _content(entry)
            self._evaluations[entry.data_set].add(same)
        if entry.kind == "sum":
            self._sums[entry.program, entry.round].add(entry.question)
            self._lists[entry.data_set].add(entry.question)
        if entry.kind == "test sum":
            self._test_lists[entry.data_set].add(entry.question)
        if entry.kind in DECISIONS:
            self._decisions[entry.program] = entry
        if entry.kind == "refused":
            self._refused[entry.asked_by].add((entry.program, entry.why))
            self._refused_on[entry.time[:10], entry.asked_by] += 1
        if is_charged(entry):
            self._costs.setdefault(entry.data_set, Costs(self._accountant)).add(entry)

    def _check_question(
        self, entry: LedgerEntry, attempts: int | None, evaluations: int | None
    ) -> None:
        """Raise DeployError unless the question of `entry` may be asked now."""
        if attempts is not None:
            self._check_attempts(entry, attempts)
        if entry.kind in SUMS:
            self._check_figures(entry, evaluations)

    def _check_attempts(self, entry: LedgerEntry, most: int) -> None:
        """Raise DeployError unless the question of `entry` may be asked (once more)."""
        earlier = self._asked.get(entry.asked, [])
        what = f"contract.attempts: the {entry.kind} of round {entry.round} was asked for"
        if entry.kind == "declaration":
            what = "contract.attempts: the declaration of this run was asked for"
        elif entry.kind == "figures":
            what = f"contract.attempts: the figures of round {entry.round} were asked for"
        elif entry.kind in CALIBRATION:
            what = "contract.attempts: the sums for calibration of this run were asked for"
        if any(one.attempt == entry.attempt and one.question != entry.question for one in earlier):
            raise DeployError(
                f"{what} before, as attempt {entry.attempt}, with other content",
                "the coordinator confuses its questions, or is malicious: ask the operator",
            )
        if len(earlier) >= most:
            times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
            raise DeployError(
                f"{what} {times}, and the limit is {most}",
                "the site's owner decides: see contract.attempts in site.toml",
            )

    def _check_figures(self, entry: LedgerEntry, most: int | None) -> None:
        """Raise DeployError unless the figures that `entry` asks for may leave.

        Two answers about one round would tell whether something about the images made them differ.
        """
        earlier = self._asked.get(entry.asked, [])
        if entry.kind in CALIBRATION:
            self._check_calibration(entry)
        elif any(one.question != entry.question for one in earlier):
            raise DeployError(
                f"figures of another model of round {entry.round} have left already",
                "ask about one model in a round",
            )
        new = _content(entry) not in {_content(one) for one in earlier} or _varies(entry)
        if new and most is not None and self.evaluations(entry.data_set) >= most:
            raise DeployError(
                f"contract.evaluations: {most} sets of figures have left, and no more may",
                "the site's owner decides: see contract.evaluations in site.toml",
            )

    def _check_calibration(self, entry: LedgerEntry) -> None:
        """Raise DeployError if losses or scores of another model have left in this run, or the same
        at another temperature."""
        cure = "ask about the model that the run ends with, once"
        earlier = [
            one
            for kind in sorted(CALIBRATION)
            for one in self._asked.get((kind, *entry.asked[1:]), [])
        ]
        if any(one.model != entry.model for one in earlier):
            cause = "sums for the calibration of another model of this run have left already"
            raise DeployError(cause, cure)
        if any(one.kind == entry.kind and _content(one) != _content(entry) for one in earlier):
            cause = "scores of this model at another temperature have left already"
            raise DeployError(cause, cure)

    def _check_clock(self, now: datetime) -> None:
        last = self._last
        if last is not None and now < last.written_at - CLOCK_TOLERANCE:
            raise StoreError(
                f"the site's clock says {now:%Y-%m-%d %H:%M} UTC, but entry {last.number} of its "
                f"ledger was written at {last.written_at:%Y-%m-%d %H:%M}",
                "correct the clock; if it was wrong then and is right now, confirm that with: "
                "fedsight site ledger --clock",
            )


def _varies(entry: LedgerEntry) -> bool:
    """Whether the figures may be others when they are computed again."""
    return entry.event is not None or entry.personal


def _content(entry: LedgerEntry) -> str:
    """What the answer says, whatever masks it has."""
    return entry.same or entry.question


def _exceeds(entry: LedgerEntry, known: set[str], most: int | None) -> bool:
    """Whether the sites of `entry` would be one list more than `most`."""
    return most is not None and entry.question not in known and len(known) >= most


def _lists(known: set[str]) -> str:
    return "list" if len(known) == 1 else "lists"
