"""The round loop: the only one, for every engine, algorithm and baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsight.coordinator.protection import Protection
from fedsight.coordinator.store import Checkpoint
from fedsight.core.errors import SiteError
from fedsight.core.layout import Layout
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Engine, Outcome
from fedsight.engines.protected import reply_size
from fedsight.models.base import Network
from fedsight.models.norms import from_moments, to_moments
from fedsight.program.federation import Federation

Line = Mapping[str, Any]


class Observer(Protocol):
    """Is told how a run goes: a progress bar, a store, a log writer."""

    def on_reply(self) -> None:
        """A client of the current round is done."""

    def on_round(self, line: Line, checkpoint: Checkpoint, last: bool) -> None:
        """A round is done; `line` is its line of the history."""


@dataclass(frozen=True)
class Trained:
    """What the loop ends with."""

    checkpoint: Checkpoint
    layout: Layout
    network: Network
    vector: Tensor  # whole: what travelled, then the initial personal slice
    sums: list[Metrics]  # of the federation's views


def run(
    federation: Federation,
    engine: Engine,
    overall: Callable[[list[Metrics]], Mapping[str, float]],
    observer: Observer | None = None,
    start: Checkpoint | None = None,
    secret: int | None = None,
) -> Trained:
    """Train `federation.program` on `engine`, from `start` or from the beginning.

    `overall` makes a round's figures from the sums of the views; `secret` is where the noise of
    protected updates comes from (None: the program's seed), which end training before they exceed
    their target. Raises SiteError when a round has fewer good replies than the program's quorum.
    """
    program = federation.program
    protection = Protection(federation, secret)
    network = federation.network()
    layout = program.layout(network)
    initial = layout.read(network.module)
    now = start or Checkpoint(
        0, initial[layout.travelling].clone(), program.init(initial[layout.shared])
    )
    sums: list[Metrics] = []
    rounds = program.rounds
    for round in range(now.round + 1, protection.rounds + 1):
        began = time.perf_counter()
        cohort = protection.cohort(round)
        order = Order(round, now.vector, program.shared(now.state))
        down = 4 * (len(order.vector) + sum(value.numel() for value in order.shared.values()))
        outcome = engine.train(order, cohort, observer.on_reply if observer else lambda: None)
        del order  # a model is large: the old one goes as soon as there is a new one
        _judge(federation, outcome, round, len(cohort))
        vector, state = _server_step(protection, federation, network, layout, now, outcome, round)
        last = round == protection.rounds
        sums = []
        if last or round % rounds.evaluate_every == 0:
            sums = engine.measure(vector, round)
        seconds = time.perf_counter() - began
        up = reply_size(federation, layout)
        now = Checkpoint(
            round,
            vector,
            state,
            now.seconds + seconds,
            now.bytes_up + up * len(outcome.notes),
            now.bytes_down + down * len(cohort),
        )
        figures = overall(sums) if sums else {}
        line = {
            "round": round,
            "score": None,
            "loss": None,
            **{key: None if isnan(value) else value for key, value in figures.items()},
            "train_loss": _train_loss(outcome),
            "epsilon": protection.epsilon(round),
            "lr": program.train.rate(round, rounds.rounds),
            "cohort": len(cohort),
            "replies": len(outcome.notes),
            "sites": sorted(note.site for note in outcome.notes),
            "rejected": outcome.rejected,
            "weight": outcome.total.weight,
            "bytes_up": up * len(outcome.notes),
            "bytes_down": down * len(cohort),
            "seconds": seconds,
        }
        if observer:
            observer.on_round(line, now, last)
    if not sums:  # resumed after the last round: only its figures are wanted
        sums = engine.measure(now.vector, now.round)
    return Trained(now, layout, network, torch.cat([now.vector, initial[layout.personal]]), sums)


def _judge(federation: Federation, outcome: Outcome, round: int, asked: int) -> None:
    """Stop the run when a round has fewer good replies than its quorum."""
    quorum, good = federation.program.rounds.quorum, len(outcome.notes)
    if good >= (asked if quorum is None else quorum):
        return
    cause = f"round {round} has {good} good replies of {asked}, and needs {quorum or 'all'}"
    for site, reason in outcome.rejected.items():
        # Most reasons name their site.
        cause += f"; the first rejected: {'' if site in reason else f'site {site!r}: '}{reason}"
        break
    raise SiteError(
        cause,
        "lower train.lr, set train.clip, or look at the rejected sites; with a lower rounds.quorum "
        "a run goes on without them. The last checkpoint is whole",
    )


def _server_step(
    protection: Protection,
    federation: Federation,
    network: Network,
    layout: Layout,
    now: Checkpoint,
    outcome: Outcome,
    round: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The algorithm moves the shared slice; statistics move by their mean moments."""
    shared, buffer = layout.shared, layout.buffer
    mean, own, rest = protection.mean(outcome.total, now.state, round)
    moved = mean.parts["delta"][buffer]
    mean = replace(mean, parts={**mean.parts, "delta": mean.parts["delta"][shared]})
    new, state = federation.program.algorithm.step(now.vector[shared], rest, mean, round)
    state = {**state, **own}
    if not bool(torch.isfinite(new).all()):
        raise SiteError(
            f"the global model is no longer finite after round {round}",
            "lower algorithm.server_lr or train.lr. The last checkpoint is whole",
        )
    if buffer.stop == buffer.start:
        return new, state
    moments = to_moments(now.vector, layout, network.statistics)
    moments[buffer] = (moments[buffer].double() + moved).float()
    vector = from_moments(moments, layout, network.statistics)
    vector[shared] = new
    return vector, state


def _train_loss(outcome: Outcome) -> float | None:
    weight = sum(note.weight for note in outcome.notes)
    if not weight or any(isnan(note.train_loss) for note in outcome.notes):  # protected
        return None
    return sum(note.train_loss * note.weight for note in outcome.notes) / weight
