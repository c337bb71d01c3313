"""The queue of buffered rounds: time never goes back, buffers are full, replies are not too old."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsight.participation.queue import Flush, Job, Queue, Rules


@dataclass
class Scripted:
    """Times from a list that goes round; the first free client that is there begins."""

    population: int
    seconds: list[float]
    lost: list[bool] = field(default_factory=lambda: [False])
    asleep_until: dict[int, float] = field(default_factory=dict)
    begun: list[tuple[int, int, int]] = field(default_factory=list)

    def takes(self, version: int, client: int, attempt: int) -> tuple[float, bool]:
        number = len(self.begun)
        self.begun.append((version, client, attempt))
        return self.seconds[number % len(self.seconds)], self.lost[number % len(self.lost)]

    def next(self, free: Callable[[int], bool], now: float, number: int) -> int | None:
        there = (one for one in range(self.population) if self.asleep_until.get(one, 0.0) <= now)
        return next((one for one in there if free(one)), None)

    def wake(self, now: float, due: float) -> float | None:
        return min((at for at in self.asleep_until.values() if now < at < due), default=None)


def flushes(rules: Rules, course: Scripted, rounds: int = 8) -> list[Flush]:
    queue = Queue(rules, course)
    return [queue.flush() for _ in range(rounds)]


sizes = st.integers(1, 8).flatmap(
    lambda most: st.tuples(st.just(most), st.integers(1, most), st.integers(1, most))
)
times = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes,
    seconds=times,
    lost=st.lists(st.booleans(), max_size=9).map(lambda drawn: [*drawn, False]),
    staleness=st.none() | st.integers(0, 4),
)
def test_what_holds_of_every_course(
    sizes: tuple[int, int, int], seconds: list[float], lost: list[bool], staleness: int | None
) -> None:
    population, concurrency, buffer = sizes[0], max(sizes[1:]), min(sizes[1:])
    rules = Rules(population, concurrency, buffer, staleness)
    course = Scripted(population, seconds, lost)
    found = flushes(rules, course)
    ends = [flush.ends for flush in found]
    assert ends == sorted(ends)
    assert [flush.round for flush in found] == list(range(1, 9))
    for before, flush in itertools.pairwise([None, *found]):
        assert len(flush.jobs) == buffer
        clients = [job.client for job in flush.jobs]
        assert len(set(clients)) == buffer
        assert not any(job.lost for job in flush.jobs)
        for job in (*flush.jobs, *flush.late, *flush.lost):
            assert 0 <= job.version < flush.round
            assert job.due <= flush.ends
            if before is not None:
                assert job.due >= before.ends
        if staleness is not None:
            assert all(flush.staleness(job) <= staleness for job in flush.jobs)
            assert all(flush.staleness(job) > staleness for job in flush.late)
            assert all(flush.round - version <= staleness + 1 for version in flush.awaited)
        assert all(version < flush.round for version in flush.awaited)
    # What a round counts was awaited since the model it began with was replaced.
    for flush, later in itertools.pairwise(found):
        stale = {job.version for job in later.jobs if later.staleness(job)}
        assert stale <= flush.awaited
    # No client counts twice with the same model, and at most `concurrency` train at a time.
    counted = Counter((job.client, job.version) for flush in found for job in flush.jobs)
    assert max(counted.values()) == 1
    assert len({(version, client, attempt) for version, client, attempt in course.begun}) == len(
        course.begun
    )
    assert sum(flush.begun for flush in found) == len(course.begun)


def test_the_course_is_the_same_again() -> None:
    rules, seconds = Rules(6, 5, 3, 2), [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    assert flushes(rules, Scripted(6, seconds)) == flushes(rules, Scripted(6, seconds))


def test_a_buffer_of_all_sites_is_a_synchronous_round() -> None:
    found = flushes(Rules(3, 3, 3), Scripted(3, [5.0, 1.0, 2.0]), 3)
    assert [flush.ends for flush in found] == [5.0, 10.0, 15.0]
    assert all(job.version == flush.round - 1 for flush in found for job in flush.jobs)
    assert [flush.begun for flush in found] == [3, 3, 3]


def test_a_worked_example() -> None:
    """Two sites at a time, one reply a round: the slow one is two rounds late."""
    found = flushes(Rules(2, 2, 1), Scripted(2, [10.0, 4.0, 4.0, 4.0]), 3)
    assert [(flush.ends, flush.jobs[0].client, flush.jobs[0].version) for flush in found] == [
        (4.0, 1, 0),
        (8.0, 1, 1),
        (10.0, 0, 0),
    ]
    assert found[2].staleness(found[2].jobs[0]) == 2
    assert [sorted(flush.awaited) for flush in found] == [[0], [0], [2]]


def test_a_site_that_is_too_late_begins_again_with_the_newest_model() -> None:
    course = Scripted(2, [10.0, 4.0, 4.0, 4.0])
    found = flushes(Rules(2, 2, 1, staleness=1), course, 3)
    assert [job.client for job in found[2].late] == [0]
    assert found[2].jobs[0].client == 1
    assert (2, 0, 1) in course.begun


def test_a_lost_reply_frees_its_site_for_another_attempt() -> None:
    course = Scripted(1, [2.0], lost=[True, True, False])
    (flush,) = flushes(Rules(1, 1, 1), course, 1)
    assert (flush.ends, len(flush.lost), flush.begun) == (6.0, 2, 3)
    assert course.begun == [(0, 0, 1), (0, 0, 2), (0, 0, 3)]


def test_time_waits_for_sites_that_sleep() -> None:
    (flush,) = flushes(Rules(2, 2, 2), Scripted(2, [1.0], asleep_until={0: 7.0, 1: 30.0}), 1)
    assert flush.ends == pytest.approx(31.0)
    assert [job.due for job in flush.jobs] == [8.0, 31.0]


def test_a_site_that_comes_while_another_trains_begins_at_once() -> None:
    course = Scripted(3, [1000.0, 1.0, 1.0], asleep_until={1: 10.0, 2: 10.0})
    (flush,) = flushes(Rules(3, 3, 2), course, 1)
    assert flush.ends == 11.0
    assert [(job.client, job.due) for job in flush.jobs] == [(1, 11.0), (2, 11.0)]
    # No more than may train at the same time, whoever comes.
    course = Scripted(3, [1000.0], asleep_until={1: 10.0, 2: 10.0})
    (flush,) = flushes(Rules(3, 2, 2), course, 1)
    assert [job.due for job in flush.jobs] == [1000.0, 1010.0]


def test_jobs_are_ordered_by_time_then_by_when_they_began() -> None:
    jobs = [Job(2.0, 1, 0, 0, False), Job(1.0, 2, 9, 0, False), Job(1.0, 0, 8, 0, True)]
    assert [job.number for job in sorted(jobs)] == [0, 2, 1]
