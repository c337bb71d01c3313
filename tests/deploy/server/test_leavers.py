"""A site that leaves before jobs start costs the others few starts, and never the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from clocks import set_clock

from fedsight.deploy.membership import presence
from fedsight.deploy.membership.presence import Presence, State
from fedsight.deploy.server.leavers import SITE_TIMEOUT, Leavers, has_gone


class Hall:
    """A folder of presences, and the time there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self.now = folder, 1e9
        set_clock(monkeypatch, lambda: self.now)

    def says(self, state: State = "", process: str = "p") -> Presence:
        presence.record(self._folder, "a", process, None, "", state)
        return self.seen()

    def seen(self) -> Presence:
        one = presence.presence(self._folder, "a")
        assert one is not None
        return one


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hall:
    return Hall(tmp_path, monkeypatch)


def test_a_site_is_gone_after_a_silence_a_word_or_a_new_process(hall: Hall) -> None:
    before = hall.says()
    hall.now += SITE_TIMEOUT - 1
    assert not hall.seen().alive
    assert not has_gone(before, hall.seen()), "a hiccup"
    hall.now += 2
    assert has_gone(before, hall.seen())
    assert not has_gone(before, hall.says())
    assert has_gone(before, hall.says("leaving"))
    back = hall.says()
    assert back.process == before.process
    assert has_gone(before, back), "it was away in between"
    hall.now += 1
    assert has_gone(back, hall.says(process="q"))
    assert not has_gone(None, hall.seen())


def test_who_says_that_it_leaves_and_stays_has_restarted(hall: Hall) -> None:
    """Each time but for the word, which it may repeat."""
    assert hall.says().restarts == ()
    for flips in range(1, 6):
        hall.now += 1
        for _ in range(2):
            hall.says("leaving")
        for _ in range(2):
            one = hall.says()
        assert (len(one.restarts), one.since) == (flips, hall.now)
        assert one.settled == (flips <= presence.FREE_RESTARTS)
    hall.says("leaving")
    assert len(hall.says(process="q").restarts) == 6, "a restart that was announced counts once"


def test_who_spoils_start_after_start_has_to_stay_first(hall: Hall) -> None:
    leavers, one = Leavers(), hall.says()
    for _ in range(presence.FREE_RESTARTS):
        leavers.note("a")
        assert leavers.may_join(one)
    for wait in (60.0, 120.0, 240.0):
        leavers.note("a")
        assert not leavers.may_join(one)
        hall.now += wait - 1
        assert not leavers.may_join(one)
        hall.now += 1
        assert leavers.may_join(one)
    leavers.note("b")
    assert leavers.may_join(one)
