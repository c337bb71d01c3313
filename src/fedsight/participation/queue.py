"""Buffered asynchronous rounds as a queue of events in virtual time (FedBuff).

Nguyen et al. 2022, Algorithm 1: a number of sites train at any time, each from the model that was
the newest when it began. As soon as K replies have come, the model takes a step. When a site has
answered, another one begins. Which site begins when, and which reply counts where, follows from
times and draws alone, never from what was learnt: so it can be known before anything is trained.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, order=True)
class Job:
    """One site's training, from the model after round `version`; ordered by when it is due."""

    due: float  # virtual seconds
    number: int  # of the job, from 0, in the order in which they began
    client: int
    version: int
    lost: bool  # whether the reply never comes


@dataclass(frozen=True)
class Flush:
    """What a round of the buffer is made of."""

    round: int  # from 1
    ends: float  # virtual seconds
    jobs: tuple[Job, ...]  # whose replies count, by version and client
    lost: tuple[Job, ...]  # whose replies never came
    late: tuple[Job, ...]  # whose replies came too late to count: see `Rules.staleness`
    begun: int  # jobs that began since the flush before
    awaited: frozenset[int]  # versions that sites still train from, for replies that may count

    def staleness(self, job: Job) -> int:
        """How many steps the model had taken since the job began."""
        return self.round - 1 - job.version


@dataclass(frozen=True)
class Rules:
    """How many take part."""

    population: int
    concurrency: int  # sites that train at the same time, at most
    buffer: int  # replies of a round, K in the paper
    staleness: int | None = None  # the most that counts; None: any


class Course(Protocol):
    """What happens outside the queue."""

    def takes(self, version: int, client: int, attempt: int) -> tuple[float, bool]:
        """How many seconds a site trains from a model, and whether its reply is lost."""
        ...

    def next(self, free: Callable[[int], bool], now: float, number: int) -> int | None:
        """The client that begins job `number` at `now`, one of those that are `free`; None: no
        site that is there is free."""
        ...

    def wake(self, now: float, due: float) -> float | None:
        """The next time after `now` at which a site comes; None if that is not before `due`.

        Raises FedSightError if `due` is infinite, and no site ever comes.
        """
        ...


@dataclass
class Queue:
    """The jobs under way, and the clock.

    A site has at most one job at a time, and after its reply waits for the next model: so it counts
    at most once in a round, and never trains twice from the same model.
    """

    rules: Rules
    course: Course
    now: float = 0.0
    version: int = 0  # the newest model
    _jobs: list[Job] = field(default_factory=list)  # under way, a heap
    _busy: set[int] = field(default_factory=set)  # clients that train, or wait for a model
    _attempts: dict[int, tuple[int, int]] = field(default_factory=dict)  # version, how often
    _number: int = 0
    _begun: int = 0

    def flush(self) -> Flush:
        """Let time pass until the buffer is full."""
        counted: list[Job] = []
        lost: list[Job] = []
        late: list[Job] = []
        self._begin()
        while len(counted) < self.rules.buffer:
            if self._may_begin:
                # A site that comes while others train does not wait until one of them is done.
                due = self._jobs[0].due if self._jobs else math.inf
                if (comes := self.course.wake(self.now, due)) is not None:
                    self.now = comes
                    self._begin()
                    continue
            job = heapq.heappop(self._jobs)
            self.now = job.due
            if not (job.lost or self._is_late(job)):
                counted.append(job)
                if len(counted) == self.rules.buffer:
                    break
            else:
                (lost if job.lost else late).append(job)
                self._busy.discard(job.client)
            self._begin()
        self.version += 1
        self._busy.difference_update(job.client for job in counted)
        begun, self._begun = self._begun, 0
        counted.sort(key=lambda job: (job.version, job.client))
        able = (job for job in self._jobs if not (job.lost or self._is_late(job)))
        awaited = frozenset(job.version for job in able)
        return Flush(
            self.version, self.now, tuple(counted), tuple(lost), tuple(late), begun, awaited
        )

    def _is_late(self, job: Job) -> bool:
        most = self.rules.staleness
        return most is not None and self.version - job.version > most

    @property
    def _may_begin(self) -> bool:
        """Whether another site may begin, if one is there."""
        rules = self.rules
        return len(self._jobs) < rules.concurrency and len(self._busy) < rules.population

    def _begin(self) -> None:
        """Let sites begin with the newest model, as many as may."""
        while self._may_begin:
            client = self.course.next(lambda one: one not in self._busy, self.now, self._number)
            if client is None:
                return
            before, times = self._attempts.get(client, (-1, 0))
            times = times + 1 if before == self.version else 1
            self._attempts[client] = self.version, times
            seconds, lost = self.course.takes(self.version, client, times)
            job = Job(self.now + seconds, self._number, client, self.version, lost)
            heapq.heappush(self._jobs, job)
            self._busy.add(client)
            self._number += 1
            self._begun += 1
