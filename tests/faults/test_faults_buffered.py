"""Buffered rounds of real sites: one is held up for some rounds, and the coordinator is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
from loopback import Loopback, loopback
from processes import DEPLOYED, wait_until

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.store import RunStore
from fedsight.governance.ledger import Ledger

SLOW = "site-02"
ROUNDS = 30  # as many as it could need, however slow the machine is


class Script(Callback):
    """Stops the slow site's trainer; lets it go on after some rounds without it; stops it again
    once its late reply has counted, and then kills the coordinator."""

    def __init__(self, made: Loopback, store: RunStore) -> None:
        self._made, self._store = made, store
        self._home = made.sites[SLOW].folder
        self._stopped: psutil.Process | None = None
        self._without = 0  # rounds since it was stopped
        self._steps: list[Callable[[], bool]] = [
            self._stop, self._go_on, self._counted, self._stop, self._kill, self._counted
        ]  # fmt: skip
        self.late: list[int] = []  # rounds in which a late reply counted

    @property
    def done(self) -> bool:
        """Whether all has happened."""
        return not self._steps

    def on(self, event: Event) -> None:
        """A round is done."""
        if not isinstance(event, RoundEnded):
            return
        self._line = event.line
        self._without = 0 if SLOW in event.line["sites"] else self._without + 1
        if self._steps and self._steps[0]():
            self._steps.pop(0)

    def _stop(self) -> bool:
        wait_until(lambda: self._made.process(self._home, "trainer") is not None, DEPLOYED)
        self._stopped = self._made.process(self._home, "trainer")
        assert self._stopped is not None
        os.kill(self._stopped.pid, signal.SIGSTOP)
        self._without = 0
        return True

    def _go_on(self) -> bool:
        assert self._stopped is not None
        if self._without < 4:
            return False
        os.kill(self._stopped.pid, signal.SIGCONT)
        return True

    def _kill(self) -> bool:
        """Its trainer is still stopped: the next job's has to take over its memory."""
        if self._without < 4:
            return False
        self._made.kill(self._made.server, "parent")
        return True

    def _counted(self) -> bool:
        stale = self._line["staleness"].get(SLOW, 0)
        if stale >= 3:
            self.late.append(self._line["round"])
        return stale >= 3


def test_others_go_on_without_a_slow_site_and_its_late_replies_count(tmp_path: Path) -> None:
    with loopback(tmp_path, 3) as three:
        store = RunStore(three.federation.runs / "slow")
        script = Script(three, store)
        rounds = {"rounds": ROUNDS, "evaluate_every": ROUNDS, "mode": "buffered", "buffer": 2}
        three.run("slow", script, rounds=rounds)
        lines = store.history()
        assert script.done, lines
        assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
        assert all(line["replies"] == 2 for line in lines)
        for round in script.late:
            assert lines[round - 1]["sites"].count(SLOW) == 1
            assert all(SLOW not in line["sites"] for line in lines[round - 4 : round - 1])
        summary = store.read_json("summary.json")
        assert summary["score"] is not None
        assert store.read_json("received.json")["sites"] == sorted(three.sites)
        # One order at a time, and each in the ledger: again only where a trainer died over it.
        for name, site in three.sites.items():
            asked = [one.round for one in Ledger(site.folder).entries() if one.kind == "update"]
            assert len(asked) - len(set(asked)) <= 1
            counted = {
                line["round"] - line["staleness"].get(name, 0)
                for line in lines
                if name in line["sites"]
            }
            assert counted <= set(asked)
