"""A site has a job begin after every round, by being away whenever one starts and ready after it.

A job goes on without a site that is drained or silent, and ends for one that is ready and not in
it. That a site may come back few times was counted by its process alone: one that says that it is
drained, or says nothing for some seconds, and is ready again with the same process, came back as
often as there are rounds. Each time all sites start new processes and open their images again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from clocks import set_clock

from fedsight.deploy.membership import presence
from fedsight.deploy.membership.presence import FREE_RESTARTS, Presence, State, record

HOUR = 3600.0


class Clock:
    """The server's time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        set_clock(monkeypatch, lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def is_silent(folder: Path, clock: Clock) -> None:
    """It says nothing until a job has begun without it."""
    clock.now += presence.HEARTBEAT_TIMEOUT + 1


def is_drained(folder: Path, clock: Clock) -> None:
    """It says that it is drained until a job has begun without it."""
    clock.now += 1
    record(folder, "mallory", "one process", None, "", "drained")


Away = Callable[[Path, Clock], None]
AWAY: list[Away] = [is_silent, is_drained]


def jobs(folder: Path, clock: Clock, away: Away) -> int:
    """How many jobs end within an hour because the site is ready, in rounds of ten seconds."""
    found, end = 0, clock.now + HOUR
    record(folder, "mallory", "one process", None)
    while clock.now < end:
        away(folder, clock)  # a job begins, and goes on without it
        there = presence.presence(folder, "mallory")
        assert there is not None
        assert not there.ready
        clock.now += 5
        record(folder, "mallory", "one process", None)
        clock.now += 5
        there = presence.presence(folder, "mallory")
        assert there is not None
        assert there.ready
        found += there.settled
    return found


@pytest.mark.parametrize("away", AWAY)
def test_it_forces_a_job_in_each_round_where_its_process_alone_counts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, away: Away
) -> None:
    def settled(one: Presence) -> bool:
        restarted = one.since > 1e9  # with the same process it never seems to
        return not restarted

    monkeypatch.setattr(Presence, "settled", property(settled))
    assert jobs(tmp_path, clock, away) > HOUR / 40


@pytest.mark.parametrize("away", AWAY)
def test_ours_counts_each_time_that_it_comes_back(tmp_path: Path, clock: Clock, away: Away) -> None:
    assert jobs(tmp_path, clock, away) <= FREE_RESTARTS
    there = presence.presence(tmp_path, "mallory")
    assert there is not None
    assert not there.settled
    for _ in range(int(HOUR / 5) + 5):  # it stays
        clock.now += 5
        record(tmp_path, "mallory", "one process", None)
    there = presence.presence(tmp_path, "mallory")
    assert there is not None
    assert there.settled
    assert there.restarts == ()


def test_a_site_that_finishes_its_round_drained_has_not_left(tmp_path: Path, clock: Clock) -> None:
    """`since` says whether a site was away from a job, and stays as it is."""
    record(tmp_path, "ward", "one process", None)
    began = clock.now
    states: tuple[State, ...] = ("", "drained", "")
    for state in states:
        clock.now += 5
        record(tmp_path, "ward", "one process", None, "", state)
    there = presence.presence(tmp_path, "ward")
    assert there is not None
    assert (there.since, there.stays) == (began, clock.now)
