"""Who takes part in a round, from which model, and when it ends; synchronous or buffered.

In buffered rounds of a simulation virtual time decides that before anybody trains, and in those of
a deployed federation real time does, while they train.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import add
from typing import Protocol

from fedsight.coordinator.protection import Protection
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.core.draws import draws
from fedsight.core.errors import ConfigError, FedSightError, Problem, SiteError, StoreError
from fedsight.engines.base import Buffer, Engine, Outcome, RealTimeEngine
from fedsight.participation.base import Known
from fedsight.participation.queue import Flush, Job, Queue, Rules
from fedsight.privacy.sampling import Poisson
from fedsight.program.federation import Federation
from fedsight.program.virtual_time import VirtualTime

HOUR = 3600.0  # seconds
_AFTER = 1e-3  # seconds: see `_Comings`
_TRIES = 64  # to draw a free site, before all are looked at


@dataclass(frozen=True)
class Turn:
    """Who takes part in one round."""

    clients: list[int]  # that train from the newest model
    asked: int  # whose replies the round waits for, those that will not count included
    orders: int  # that are sent in it
    ends: float | None = None  # virtual seconds since the beginning; None: no time passes
    # clients that train from earlier models, by the round after which that model was made
    earlier: Mapping[int, list[int]] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)  # site -> why its reply does not count
    late: int = 0  # replies that came too late to count
    awaited: frozenset[int] = frozenset()  # earlier models that later rounds need
    # where real time decides: how the round ends; once it has ended, by site, the round after which
    # the model was made that it still trains from; and the seconds that counted replies took
    buffer: Buffer | None = None
    under_way: Mapping[str, int] = field(default_factory=dict)
    took: Mapping[str, float] = field(default_factory=dict)


def discount(round: int, version: int) -> float:
    """What an update of the model after round `version` is multiplied by in `round`: its staleness
    is how many steps that model had taken since (Nguyen et al. 2022: 1 / sqrt(1 + staleness))."""
    return 1.0 / math.sqrt(round - version)


class Turns(Protocol):
    """Says who takes part."""

    def turn(self, now: Checkpoint, round: int) -> Turn:
        """Who takes part in `round`, the one after `now`; FedSightError if nobody ever can."""
        ...

    def ended(self, turn: Turn, outcome: Outcome, round: int) -> Turn:
        """What is known of the turn of `round` once the round has ended."""
        ...

    def after(self, now: Checkpoint, outcome: Outcome) -> list[float] | None:
        """What is kept of the sites' losses after a round; None: nothing."""
        ...


def turns_of(session: Session, engine: Engine | None = None) -> Turns:
    """The turns of a session's program on `engine`."""
    if session.program.rounds.buffered:
        live = isinstance(engine, RealTimeEngine)
        return RealTime(session.federation) if live else Buffered(session.federation)
    return Synchronous(session.federation, session.protection)


class Synchronous:
    """All sites of a cohort train from the same model, and the round waits for them, until its
    deadline in virtual time."""

    def __init__(self, federation: Federation, protection: Protection) -> None:
        """Raises ConfigError if coins draw too few sites for masks in a round of the run."""
        self._federation, self._protection = federation, protection
        self._time = VirtualTime(federation)
        if federation.program.secure.masks and self._by_coins:
            self._require_enough()

    @property
    def _by_coins(self) -> bool:
        """Whether a coin for each site decides, so that rounds have different numbers of them."""
        program = self._federation.program
        if program.participation.accounted:
            return isinstance(program.privacy.sampler(self._federation.plan), Poisson)
        return program.participation.most(1, 2) > 1 and not self._time.passes

    def _require_enough(self) -> None:
        """All coins are known before the first round, in which it is better said than in the last:
        repeated, a round has the same sites again."""
        everyone, secure = range(self._population), self._federation.program.secure
        for round in range(1, self._protection.rounds + 1):
            drawn = len(self._cohort(None, round, everyone))
            try:
                secure.parameters(drawn)
            except SiteError:
                cause = (
                    f"coins draw {drawn} of {self._population} sites in round {round}, too few for "
                    "secure aggregation"
                )
                cure = (
                    "raise it, draw a fixed number of sites (participation.name = 'uniform'; under "
                    "central privacy.sampling = 'fixed'), or start with another seed"
                )
                raise ConfigError([Problem("rounds.cohort", cause, cure)]) from None

    def turn(self, now: Checkpoint, round: int) -> Turn:
        """The cohort that is there, without those that drop out or are late."""
        if not self._time.passes:
            cohort = self._cohort(now.losses, round, range(self._population))
            return Turn(cohort, len(cohort), len(cohort))
        begins, there = self._there(now.virtual_seconds or 0.0)
        cohort, name = self._cohort(now.losses, round, there), self._federation.name
        limit = self._federation.program.rounds.deadline
        lost, took, clients = dict[str, str](), [0.0], list[int]()
        for client in cohort:
            seconds = self._time.seconds(round, client)
            if self._time.is_lost(round, client):
                lost[name(client)] = "dropped out (timing.dropout)"
            elif seconds > limit:
                lost[name(client)] = (
                    f"would have taken {seconds:.4g} virtual seconds, and rounds.deadline is "
                    f"{limit:g}"
                )
            else:
                clients.append(client)
                took.append(seconds)
        # Nobody knows that a site has dropped out before the deadline.
        ends = begins + (limit if lost else max(took))
        return Turn(clients, len(cohort), len(cohort), ends, lost=lost)

    @property
    def _population(self) -> int:
        return self._federation.population

    def _there(self, now: float) -> tuple[float, Sequence[int]]:
        """The first moment from `now` on at which enough sites are there, and which these are."""
        program, name = self._federation.program, self._federation.name
        chosen, seed, everyone = program.participation, program.train_seed, range(self._population)
        if not chosen.follows_time:
            return now, everyone
        least, moment = min(program.rounds.present, self._population), now
        comings = _Comings(self._federation)
        while moment <= now + 2 * chosen.period * HOUR:
            there = [one for one in everyone if chosen.is_there(name(one), moment / HOUR, seed)]
            if len(there) >= least:
                return moment, there
            moment = comings.after(moment)
        raise never(least)

    def _cohort(
        self, losses: Sequence[float] | None, round: int, there: Sequence[int]
    ) -> list[int]:
        program = self._federation.program
        if program.participation.accounted:
            return self._protection.cohort(round)

        def loss(client: int) -> float:
            return math.inf if losses is None else losses[client]

        drawn = draws(program.train_seed, "round", round, "participation")
        known = Known(self._federation.size, loss)
        return program.participation.draw(there, program.rounds.cohort, known, drawn)

    def ended(self, turn: Turn, outcome: Outcome, round: int) -> Turn:
        """The same: all was known before."""
        return turn

    def after(self, now: Checkpoint, outcome: Outcome) -> list[float] | None:
        """The losses, if sites are chosen by them."""
        if not self._federation.program.participation.asks_loss:
            return None
        known = now.losses or [math.inf] * self._population
        fresh = {one.client: one.train_loss for one in outcome.accepted}
        return [fresh.get(client, loss) for client, loss in enumerate(known)]


class Buffered:
    """Sites train from whichever model was the newest when they began, and the first replies count.

    Which these are follows from virtual time alone. So the queue is not kept anywhere: a resumed
    run lets it happen again from the beginning, which takes no training.
    """

    def __init__(self, federation: Federation) -> None:
        rounds, population = federation.program.rounds, federation.population
        self._federation = federation
        rules = Rules(
            population, rounds.cohort or population, rounds.replies(population),
            rounds.max_staleness,
        )  # fmt: skip
        self._queue = Queue(rules, _Course(federation))
        self._flush: Flush | None = None

    def turn(self, now: Checkpoint, round: int) -> Turn:
        """The replies that fill the buffer of this round."""
        flush = self._flush
        while flush is None or flush.round < round:
            flush = self._queue.flush()
        self._flush = flush
        assert flush.round == round  # the loop never goes back
        name, fresh = self._federation.name, round - 1
        by_version: dict[int, list[int]] = {}
        for job in flush.jobs:
            by_version.setdefault(job.version, []).append(job.client)
        clients = by_version.pop(fresh, [])
        _require_models(now, by_version)
        lost = {name(job.client): "dropped out (timing.dropout)" for job in flush.lost}
        stale = self._federation.program.rounds.too_stale
        lost |= {name(job.client): stale(flush.staleness(job)) for job in flush.late}
        lost = {site: why for site, why in lost.items() if site not in self._names(flush.jobs)}
        return Turn(
            clients, len(flush.jobs), flush.begun, flush.ends, by_version, lost,
            len(flush.late), flush.awaited,
        )  # fmt: skip

    def _names(self, jobs: tuple[Job, ...]) -> set[str]:
        return {self._federation.name(job.client) for job in jobs}

    def ended(self, turn: Turn, outcome: Outcome, round: int) -> Turn:
        """The same: all was known before."""
        return turn

    def after(self, now: Checkpoint, outcome: Outcome) -> list[float] | None:
        """Nothing: who begins does not depend on losses."""
        return None


class RealTime:
    """Buffered rounds in real time: the first replies to come count, so only the engine can say
    which these are. What a resumed run needs is in the checkpoint: who still trains, from which
    model."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    def turn(self, now: Checkpoint, round: int) -> Turn:
        """Who trained when the last round ended, and all others, who are free to begin."""
        federation = self._federation
        rounds, population = federation.program.rounds, federation.population
        by_version: dict[int, list[int]] = {}
        free = []
        for client in range(population):
            if (version := now.under_way.get(federation.name(client))) is None:
                free.append(client)
            else:
                by_version.setdefault(version, []).append(client)
        _require_models(now, by_version)
        most = rounds.cohort or population
        if most < population:
            drawn = draws(federation.program.train_seed, "round", round, "participation")
            free = drawn.permutation(free).tolist()
        replies = rounds.replies(population)
        return Turn(free, replies, 0, earlier=by_version, buffer=Buffer(replies, most))

    def ended(self, turn: Turn, outcome: Outcome, round: int) -> Turn:
        """What the round was made of, and who still trains for a later one."""
        course, most = outcome.course, self._federation.program.rounds.max_staleness
        assert course is not None
        earlier: dict[int, list[int]] = {}
        for one in outcome.accepted:
            if (version := course.began[one.site]) < round - 1:
                earlier.setdefault(version, []).append(one.client)
        able = {
            site: version
            for site, version in course.under_way.items()
            if most is None or round - version <= most
        }
        return replace(
            turn, orders=course.begun, earlier=earlier, late=course.late, under_way=able,
            awaited=frozenset(able.values()), took=course.took,
        )  # fmt: skip

    def after(self, now: Checkpoint, outcome: Outcome) -> list[float] | None:
        """Nothing: who begins does not depend on losses."""
        return None


def _require_models(now: Checkpoint, by_version: Mapping[int, Sequence[int]]) -> None:
    """StoreError if the checkpoint lacks a model from which clients train, by its round."""
    if unknown := by_version.keys() - now.earlier.keys():
        raise StoreError(
            f"the checkpoint of round {now.round} lacks the model after round {min(unknown)}, "
            "from which sites still train",
            "restore the file, or start the run again with another --out",
        )


@dataclass
class _Course:
    """Times and sites of a federation, for the queue."""

    federation: Federation

    def __post_init__(self) -> None:
        self._time, self._comings = VirtualTime(self.federation), _Comings(self.federation)
        program = self.federation.program
        self._chosen, self._seed = program.participation, program.train_seed

    def takes(self, version: int, client: int, attempt: int) -> tuple[float, bool]:
        """By the order of the round after `version`."""
        order = version + 1
        lost = self._time.is_lost(order, client, attempt)
        return self._time.seconds(order, client, attempt), lost

    def next(self, free: Callable[[int], bool], now: float, number: int) -> int | None:
        """Drawn uniformly from those that are free and there."""
        federation = self.federation

        def able(client: int) -> bool:
            there = self._chosen.is_there(federation.name(client), now / HOUR, self._seed)
            return free(client) and there

        drawn = draws(self._seed, "job", number)
        for _ in range(_TRIES):  # most are free, unless all train at the same time
            if able(client := drawn.below(federation.population)):
                return client
        left = [client for client in range(federation.population) if able(client)]
        return left[drawn.below(len(left))] if left else None

    def wake(self, now: float, due: float) -> float | None:
        """When the next site comes, if that is before `due`."""
        if due < math.inf and not self._chosen.follows_time:
            return None  # all are always there
        comes = self._comings.after(now)
        return comes if comes < due else None


class _Comings:
    """When sites come that are not there."""

    def __init__(self, federation: Federation) -> None:
        chosen, seed = federation.program.participation, federation.program.train_seed
        self._period, hours = chosen.period * HOUR, list[float]()
        if chosen.follows_time:
            names = [federation.name(client) for client in range(federation.population)]
            hours = chosen.comings(names, seed)
        # A millisecond later, so that no rounding puts a moment before the hour of a coming.
        self._moments = [hour * HOUR + _AFTER for hour in hours]

    def after(self, now: float) -> float:
        """The first moment after `now` at which a site comes; FedSightError if none ever does."""
        begun = now - now % self._period
        for period in (0.0, self._period):
            place = bisect_right(self._moments, now, key=partial(add, begun + period))
            if place < len(self._moments):
                return begun + period + self._moments[place]
        raise never(1)


def never(least: int) -> FedSightError:
    """There are never enough sites."""
    return FedSightError(
        f"there is no time at which {least} sites are there",
        "lower rounds.cohort, rounds.quorum or rounds.buffer, or let more sites be there",
    )
