"""A worker process that trains whole baselines: one site alone, or all images pooled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import torch

from fedsight.client.step import Client
from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.closing import closed
from fedsight.coordinator.loop import Overall, Trained, run
from fedsight.coordinator.opening import opened
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.core.allocator import keep_freed_memory
from fedsight.core.types import Metrics
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.delivery.deliver import Delivered, SharedModel, deliver
from fedsight.evaluation.evidence import Evidence, Witness
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.generalisation.exam import Exam, examined
from fedsight.evaluation.shortcuts import agreement
from fedsight.evaluation.shortcuts.measure import why_not
from fedsight.program.budget import Budget
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

POOLED = -1  # the job that trains on all images; other jobs are site numbers


@dataclass(frozen=True)
class TrainedBaseline:
    """A finished baseline: its metric sums for each of the federation's views."""

    job: int
    sums: list[Metrics]
    passes: float  # over its images, as they were counted
    evidence: Evidence | None  # what the figure of the job's own site rests on
    kept: int | None = None  # the round that was kept, where rounds are compared
    delivered: Delivered | None = None  # what the site gets, if it has images to choose by
    exam: Exam | None = None  # of the model that it trained; None: nobody asked
    alike: Sequence[int] | None = None  # how its maps agree with the shared model's; likewise


class BaselineRound:
    """A baseline has finished a round."""


@dataclass(frozen=True)
class _RoundReporter(Callback):
    send: Callable[[BaselineRound], None]

    def on(self, event: Event) -> None:
        """Report each round to the coordinator; this also fails once the coordinator is gone."""
        if isinstance(event, RoundEnded):
            self.send(BaselineRound())


def _nothing(sums: list[Metrics]) -> dict[str, float]:
    return {}


def work(setup: tuple[Federation, Speed, Budget, SharedModel | None], pipe: Connection) -> None:
    """Train the baselines that are requested, until the coordinator closes the pipe."""
    federation, speed, budget, shared = setup
    torch.set_num_threads(speed.threads)
    keep_freed_memory()
    federation.network  # noqa: B018 - built once, for all baselines
    while True:
        job = pipe.recv()
        pooled = job == POOLED
        baseline = federation.all_pooled(budget) if pooled else federation.alone(job, budget)
        found = delivered = alike = None
        with training(baseline, job, speed, [_RoundReporter(pipe.send)]) as (trained, engine):
            client = engine.loaded(trained.travelling)
            exam = examined(federation, Evaluator(baseline), client, None if pooled else job)
            if not pooled:
                found = Witness(Evaluator(baseline), client).of(job)
                if shared is not None:
                    alike = _alike(federation, job, shared, client)
                    delivered = deliver(federation, job, shared, client, speed)
        passes = engine.seen / max(1, baseline.size(0))
        kept = trained.round if baseline.program.rounds.compared else None
        pipe.send(TrainedBaseline(job, trained.sums, passes, found, kept, delivered, exam, alike))


def _alike(
    federation: Federation, site: int, shared: SharedModel, client: Client
) -> Sequence[int] | None:
    """How far the site's own model, which the client has, looks where the shared one does."""
    if why_not(federation, local=True) is not None:
        return None
    vector = client.layout.vector(shared.state(federation, site))
    return agreement.compared(federation, site, client, vector)


@contextlib.contextmanager
def training(
    baseline: Federation,
    job: int,
    speed: Speed,
    callbacks: Sequence[Callback],
    start: Checkpoint | None = None,
) -> Iterator[tuple[Trained, InProcessEngine]]:
    """Train the baseline `job` in this process, from `start` or from the beginning; what came of
    it, and the engine, which is closed afterwards."""
    session, engine_of = Session(baseline), partial(InProcessEngine, speed=speed)
    engine = engine_of(baseline)
    try:
        overall = _judged(baseline, job)
        begun = start or opened(session, engine_of, overall)
        trained = run(session, engine, overall, callbacks, begun)
        yield closed(session, engine_of, overall, trained), engine
    finally:
        engine.close()


def _judged(baseline: Federation, job: int) -> Overall:
    """The figures by which a baseline's rounds are compared, if they are, as the federation's own:
    on all validation images, or for a site alone on its own, or in its label mix."""
    checked = baseline.validating
    if checked is None:
        return _nothing
    evaluator, name = Evaluator(checked), checked.partition.name(max(0, job))
    if job == POOLED:
        return lambda sums: evaluator.figures(sums).overall
    return lambda sums: evaluator.figures(sums, only=job).by_site.get(name, {})
