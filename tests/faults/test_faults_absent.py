"""Real sites that stop, die or stand still just before a run or in it: the others go on, and what
became of them is told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import done
from loopback import IPV6, Loopback, loopback
from processes import DEPLOYED, wait_until

from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.deploy.membership import presence

QUORUM = {"rounds": 2, "evaluate_every": 2, "quorum": 2}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("federation"), 3, IPV6) as made:
        yield made


def test_doctors_find_nothing_wrong_in_a_federation_that_runs(three: Loopback) -> None:
    site = three.sites["site-00"].folder
    wait_until(lambda: presence.is_answered(site), DEPLOYED)
    for words in (
        ("site", "doctor", site),
        ("federation", "doctor", "--federation", three.federation.folder),
    ):
        found = json.loads(done(*words, "--json").out)["findings"]
        states = {one["what"]: (one["state"], one["value"]) for one in found}
        assert {state for state, _ in states.values()} == {"ok"}, states
        assert states["TLS"][1] == "both ends accept each other"
        assert {"network", "keys", "free disk"} <= states.keys()
        assert states["network"][1].endswith(f" answers ({IPV6})")
    assert done("health", site, "--connected").out == "site site-00: works\n"
    served = done("health", three.federation.folder).out
    assert served == "server of the federation demo: works\n"


def back(three: Loopback, name: str) -> None:
    home = three.sites[name].folder
    wait_until(lambda: not three.process_left(home), DEPLOYED)
    three.start_site(name)
    wait_until(lambda: three.alive(name), DEPLOYED)


def test_a_run_begins_without_a_site_that_stopped_or_died_just_before(three: Loopback) -> None:
    for how in ("stopped", "died"):
        process = three.running[three.sites["site-02"].folder]
        if how == "stopped":
            process.terminate()
            process.wait()
            assert not three.alive("site-02"), "it has said so"
        else:
            process.kill()
            process.wait()
        three.said.clear()
        store = three.run(how, rounds=QUORUM)
        assert [line["sites"] for line in store.history()] == [["site-00", "site-01"]] * 2
        assert any("site 'site-02' is not connected" in text for text in three.said), three.said
        back(three, "site-02")


class Standstill(Callback):
    """Stops a site's trainer after the first round; it goes on once that was told."""

    def __init__(self, three: Loopback, home: Path) -> None:
        self._three, self._home = three, home
        self.stopped = 0

    def on(self, event: Event) -> None:
        """A round is done."""
        if not isinstance(event, RoundEnded) or event.line["round"] != 1:
            return
        wait_until(lambda: self._three.process(self._home, "trainer") is not None, DEPLOYED)
        trainer = self._three.process(self._home, "trainer")
        assert trainer is not None
        self.stopped = trainer.pid
        os.kill(self.stopped, signal.SIGSTOP)


class Told(list[str]):
    """What is said; a trainer goes on when it is said that it stands still."""

    watch: Standstill

    def append(self, text: str) -> None:
        """Something is said."""
        super().append(text)
        if "one of its processes is suspended" in text:
            os.kill(self.watch.stopped, signal.SIGCONT)


def test_a_trainer_that_stands_still_is_told(three: Loopback) -> None:
    told = Told()
    told.watch = Standstill(three, three.sites["site-01"].folder)
    three.said = told
    # It is held until this was told, so the run ends only if it is.
    store = three.run("still", told.watch, rounds={**QUORUM, "rounds": 3, "quorum": None})
    assert len(store.history()) == 3
    assert "site 'site-01' is connected, but one of its processes is suspended (SIGSTOP)" in told
