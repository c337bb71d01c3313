"""The round loop: the same one for every engine, algorithm and baseline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch
from torch import Tensor

from fedsight.client.distillation import distilled
from fedsight.coordinator.callbacks import (
    Callback,
    ReplyArrived,
    RoundBegan,
    RoundComputed,
    RoundEnded,
    notify,
)
from fedsight.coordinator.choice import Choice
from fedsight.coordinator.downlink import Downlink
from fedsight.coordinator.moving_average import averaged
from fedsight.coordinator.nested import over_trainers
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.coordinator.turns import Turn, discount, turns_of
from fedsight.core.errors import FedSightError, SiteError
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Arrival, Earlier, Engine, Outcome, RealTimeEngine, Work, gathered
from fedsight.engines.protected import reply_bytes
from fedsight.models.norms import from_moments, to_moments
from fedsight.program.coding import decoded_mean
from fedsight.program.federation import Federation
from fedsight.program.rounds import Rounds

Overall = Callable[[list[Metrics]], Mapping[str, float]]
AVERAGE = "moving average"  # which model is measured and delivered, where it is not the last one


@dataclass(frozen=True)
class Trained:
    """The result of the loop."""

    checkpoint: Checkpoint  # of the last round
    # of the round that is kept, complete: the travelling part, then the initial personal slice and
    # the frozen one
    vector: Tensor
    sums: list[Metrics]  # of the federation's views, for the model that is kept
    round: int  # that is kept
    unmeasured: Mapping[str, str]  # why sites are not in these sums, by site

    @property
    def travelling(self) -> Tensor:
        """The travelling part of the model."""
        return self.vector[: len(self.checkpoint.vector)]


def run(
    session: Session,
    engine: Engine,
    overall: Overall,
    callbacks: Sequence[Callback] = (),
    start: Checkpoint | None = None,
    unmeasured: Checkpoint | None = None,
) -> Trained:
    """Train the session's program on `engine`, from `start` or from the beginning.

    Rounds are measured on the validation part where there is one, and the final model, once, on the
    test part, whose sums are returned. The first round is taken from `unmeasured`, if it is given,
    and only measured. `overall` computes a round's figures from the sums of the views. Protected
    training ends before its epsilon exceeds the target, and any training once it has waited
    `rounds.patience` for a better round. Raises SiteError when a round has fewer accepted replies
    than the program's quorum.
    """
    loop = _Loop(session, engine, overall, callbacks)
    now = start or loop.beginning()
    loop.unmeasured = unmeasured
    sums: list[Metrics] = []
    for round in range(now.round + 1, session.protection.rounds + 1):
        if loop.ends(now):
            break
        now, sums = loop.round(now, round)
    loop.notify_round()
    vector, round = now.model, now.round
    if now.best is not None and now.best.vector is not None:
        vector, round = now.best.vector, now.best.round
    # Resumed after the last round, or measured on other images: the final figures are missing.
    if not sums or validates(session, engine):
        sums = engine.measure(vector, round)
    whole = torch.cat([vector, session.initial[session.layout.kept]])
    return Trained(now, whole, sums, round, not_measured(engine))


def validates(session: Session, engine: Engine) -> bool:
    """Whether the rounds' figures are those of the validation part, not of the test part."""
    return engine.validates and session.federation.validating is not None


def not_measured(engine: Engine) -> dict[str, str]:
    """Why sites are not in the figures of the last model that was measured, by site."""
    return dict(engine.unmeasured) if isinstance(engine, RealTimeEngine) else {}


class _Loop:
    """One run of the loop, and the round event that has not been sent to the callbacks yet."""

    def __init__(
        self, session: Session, engine: Engine, overall: Overall, callbacks: Sequence[Callback]
    ) -> None:
        self._session, self._engine, self._overall = session, engine, overall
        self._callbacks = callbacks
        self._validates = validates(session, engine)
        # Never by the test part: a site alone without validation images keeps its last round.
        self._choice = Choice.of(session.program) if self._validates else None
        self._unsent: RoundEnded | None = None
        self.unmeasured: Checkpoint | None = None  # the first round, if it was computed before
        self._turns, self._downlink = turns_of(session, engine), Downlink(session)
        self._doubts: dict[str, str] = {}  # which replies of the last round were odd, and why

    def beginning(self) -> Checkpoint:
        """The checkpoint before the first round."""
        initial, layout = self._session.initial, self._session.layout
        state = self._session.program.init(initial[layout.shared].clone())
        return Checkpoint(0, initial[layout.travelling].clone(), state)

    def round(self, now: Checkpoint, round: int) -> tuple[Checkpoint, list[Metrics]]:
        """Run one round from `now`: the next checkpoint, and the views' sums if measured."""
        program, protection = self._session.program, self._session.protection
        found, self.unmeasured = self.unmeasured or self._computed(now, round), None
        began = time.perf_counter()
        sums: list[Metrics] = []
        last = round == protection.rounds
        if last and isinstance(self._engine, RealTimeEngine):
            self._engine.abandon()  # so that every site can be measured
        if last or round % program.rounds.evaluate_every == 0:
            news = None if found.held is None else found.held.message
            sums = self._engine.measure(found.model, round, self._validates, news)
        seconds = time.perf_counter() - began
        line = {**self._figures(sums, round), **(found.unmeasured or {})}
        line["seconds"] += seconds
        best = None
        if self._choice is not None:
            best = self._choice.after(now.best, round, found.model, line)
            line["best"] = None if best is None else best.round
        after = replace(found, seconds=found.seconds + seconds, unmeasured=None, best=best)
        last = last or self.ends(after)
        self._unsent = RoundEnded(line, after, last)
        if last or not self._engine.overlaps:
            self.notify_round()
        return after, sums

    def _computed(self, now: Checkpoint, round: int) -> Checkpoint:
        """Run one round from `now`, up to the measurement of its model."""
        program = self._session.program
        began = time.perf_counter()
        turn = self._turns.turn(now, round)
        order = self._downlink.order(now, round)
        outcome = self._collected(now, turn, order)
        turn = self._turns.ended(turn, outcome, round)
        _require_quorum(outcome, round, turn.asked, program.rounds, self._doubts)
        self._doubts = outcome.doubts
        with _doubting(outcome.doubts):
            vector, state = _server_step(self._session, now, outcome, round)
            held = self._downlink.after(now, vector, outcome, round)
        up = sum(one.bytes for one in outcome.accepted)
        if turn.late:  # nothing is known of them but that they came
            up += turn.late * reply_bytes(self._session.federation, outcome.total)
        down = self._downlink.bytes(now, order, turn, outcome)
        sent = {"bytes_up": up, "bytes_down": down}
        seconds = time.perf_counter() - began
        line = {
            **_reply_fields(outcome, turn.asked),
            **self._time_fields(turn, round),
            "lr": program.train.rate(round, program.rounds.rounds),
            **sent,
            "seconds": seconds,
        }
        models = {**now.earlier, now.round: now.vector}
        found = Checkpoint(
            round,
            vector,
            state,
            now.seconds + seconds,
            now.bytes_up + sent["bytes_up"],
            now.bytes_down + sent["bytes_down"],
            line,
            average=averaged(now.average, vector, round, program.rounds.ema),
            virtual_seconds=turn.ends,
            losses=self._turns.after(now, outcome),
            earlier={version: models[version] for version in sorted(turn.awaited)},
            under_way=turn.under_way,
            held=held,
        )
        notify(self._callbacks, RoundComputed(found))
        return found

    def _collected(self, now: Checkpoint, turn: Turn, order: Order) -> Outcome:
        """The replies of a round."""
        # A site of a buffered round trains as it did in the round whose order it was sent.
        earlier = [
            Earlier(
                Order(version + 1, now.earlier[version], order.shared),
                clients,
                discount(order.round, version),
            )
            for version, clients in sorted(turn.earlier.items())
        ]
        name = self._session.federation.name
        fresh = turn.clients if turn.buffer is None else turn.clients[: turn.buffer.most]
        asked = [*fresh, *(client for one in earlier for client in one.clients)]
        notify(self._callbacks, RoundBegan(order.round, [name(client) for client in asked]))
        # While the cohort trains, the previous round is reported to the callbacks (which write
        # the checkpoint, for example).
        engine, buffer = self._engine, turn.buffer

        def submit() -> Work:
            if buffer is None:
                return engine.submit(order, turn.clients, earlier)
            assert isinstance(engine, RealTimeEngine)
            return engine.fill(order, turn.clients, earlier, buffer)

        outcome = gathered(submit, self._notify_reply, self.notify_round)
        for site, cause in turn.lost.items():
            outcome.rejected.setdefault(site, cause)
        return outcome

    def _time_fields(self, turn: Turn, round: int) -> dict[str, Any]:
        """The fields of a history line that virtual time adds."""
        fields: dict[str, Any] = {}
        if turn.ends is not None:
            fields["virtual_seconds"] = turn.ends
        if self._session.program.rounds.buffered:
            name = self._session.federation.name
            fields["staleness"] = {
                name(client): round - 1 - version
                for version, clients in sorted(turn.earlier.items())
                for client in clients
            }
        if turn.took:
            fields["reply_seconds"] = {site: turn.took[site] for site in sorted(turn.took)}
        return fields

    def ends(self, now: Checkpoint) -> bool:
        """Whether training ends early, after the round of this checkpoint."""
        return self._choice is not None and self._choice.ends(now.best)

    def _notify_reply(self, arrival: Arrival) -> None:
        notify(self._callbacks, ReplyArrived(arrival))

    def notify_round(self) -> None:
        """Send the last round's event to the callbacks, once."""
        if self._unsent is not None:
            event, self._unsent = self._unsent, None
            notify(self._callbacks, event)

    def _figures(self, sums: list[Metrics], round: int) -> dict[str, Any]:
        figures = self._overall(sums) if sums else {}
        measured = {key: None if isnan(value) else value for key, value in figures.items()}
        missing = not_measured(self._engine) if sums else {}
        spent = self._session.protection.epsilon(round)
        part = "validation part" if self._validates else "test part"
        return {
            "round": round,
            "score": None,
            "loss": None,
            **measured,
            "measured_on": part if sums else None,
            **({"not_measured": missing} if missing else {}),
            **({} if self._session.program.rounds.ema is None else {"model": AVERAGE}),
            "epsilon": spent,
        }


def _reply_fields(outcome: Outcome, asked: int) -> dict[str, Any]:
    """The fields of a history line that describe a round's replies."""
    return {
        "train_loss": _train_loss(outcome),
        "cohort": asked,
        "replies": len(outcome.accepted),
        "sites": sorted(one.site for one in outcome.accepted),
        "rejected": outcome.rejected,
        **({"doubts": outcome.doubts} if outcome.doubts else {}),
        "weight": outcome.total.weight,
    }


def _require_quorum(
    outcome: Outcome, round: int, asked: int, rounds: Rounds, doubts: Mapping[str, str]
) -> None:
    """Raise SiteError when a round has fewer accepted replies than its quorum.

    `doubts` are those about replies of the round before, which may have spoiled the model.
    """
    good = len(outcome.accepted)
    if good >= rounds.needed(asked):
        return
    least = "all" if rounds.quorum is None else rounds.needed(asked)
    cause = f"round {round} has {good} good replies of {asked}, and needs {least}"
    for site, reason in outcome.rejected.items():
        # Most reasons name their site.
        cause += f"; the first rejected: {'' if site in reason else f'site {site!r}: '}{reason}"
        break
    if doubts:
        doubt = "; ".join(doubts.values())
        cause += f"; but in the round before, {doubt}: this may be why they fail"
    raise SiteError(
        cause,
        "lower train.lr, set train.clip, or check the rejected sites; with a lower rounds.quorum "
        "a run continues without them. The last checkpoint is intact",
    )


@contextlib.contextmanager
def _doubting(doubts: Mapping[str, str]) -> Iterator[None]:
    """Within it an error that the replies of a round lead to names all whose reply is in doubt."""
    try:
        yield
    except FedSightError as error:
        if doubts:
            doubt = "; ".join(doubts.values())
            error.cause += f"; but {doubt}: this may be why"
        raise


def _server_step(
    session: Session, now: Checkpoint, outcome: Outcome, round: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The algorithm updates the shared slice, and running statistics follow their mean moments. To
    tensors that the coordinator moves, it adds what the mean update misses."""
    layout, program = session.layout, session.program
    shared = layout.shared
    mean, own, rest = session.protection.mean(outcome.total, now.state, round)
    lengths = session.federation.lengths
    mean = replace(mean, parts=decoded_mean(program, mean.parts, lengths, round))
    mean = over_trainers(session.federation, outcome, mean)
    images = sum(session.federation.size(one.client) for one in outcome.accepted)
    if not program.algorithm.is_possible(mean.integers, images):
        raise SiteError(
            f"the sums of round {round} are not those of {images:,} images",
            "a site sends what no FedSight sends. Under masks nobody can see which: leave out "
            "sites in turn (`fedsight federation revoke`), or find it in a run with secure.name = "
            "'quantised'",
        )
    delta = mean.parts.get("delta")
    # Before the step, which may change the parts in place.
    missed = None if delta is None else _missed(session.federation, delta)
    if delta is not None:
        mean = replace(mean, parts={**mean.parts, "delta": delta[shared]})
    targets = program.algorithm.ensemble(mean) if program.algorithm.lessons.passes else None
    new, state = program.algorithm.step(now.vector[shared], rest, mean, round)
    drift = None if delta is None else delta[layout.buffer]
    vector = _with_statistics(session, now.vector, new, drift)
    if missed is not None:
        vector[layout.moved] = (now.vector[layout.moved] + missed).float()
    if targets is not None:
        vector = distilled(session.federation, vector, targets, round)
    if not all(bool(torch.isfinite(vector[part]).all()) for part in (shared, layout.moved)):
        raise SiteError(
            f"the global model is no longer finite after round {round}",
            "lower algorithm.server_lr or train.lr. The last checkpoint is intact",
        )
    return vector, {**state, **own}


def _missed(federation: Federation, delta: Tensor) -> Tensor | None:
    """What the mean update misses of the tensors that the coordinator moves, float64 [moved]: the
    mean of what it derived of each, at the end of `delta`, less what it derives of the mean."""
    if federation.derived is None:
        return None
    sent = federation.layout.sent
    return delta[sent.stop :] - federation.derived.of(delta[sent])


def _with_statistics(session: Session, before: Tensor, new: Tensor, drift: Tensor | None) -> Tensor:
    """The new shared slice and what else travels: of `before`, but for running statistics that have
    changed by `drift`."""
    layout = session.layout
    shared, buffer = layout.shared, layout.buffer
    if len(new) == len(before):
        return new
    if buffer.stop == buffer.start or drift is None:  # no update travels, and so no statistics
        return torch.cat([new, before[shared.stop :]])
    statistics = session.network.statistics
    moments = to_moments(before, layout, statistics)
    moments[buffer] = (moments[buffer].double() + drift).float()
    vector = from_moments(moments, layout, statistics)
    vector[shared] = new
    return vector


def _train_loss(outcome: Outcome) -> float | None:
    weight = sum(one.weight for one in outcome.accepted)
    if not weight or any(isnan(one.train_loss) for one in outcome.accepted):  # protected
        return None
    return sum(one.train_loss * one.weight for one in outcome.accepted) / weight
