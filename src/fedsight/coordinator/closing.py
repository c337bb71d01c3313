"""The closing of a run: one round of another algorithm sets the head of the trained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fedsight.coordinator import loop
from fedsight.coordinator.callbacks import Callback, RoundEnded, notify
from fedsight.coordinator.choice import Choice
from fedsight.coordinator.opening import OneRound
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.engines.base import Engine
from fedsight.program.federation import Federation


def closed(
    session: Session,
    engine_of: Callable[[Federation], Engine],
    overall: loop.Overall,
    trained: loop.Trained,
    callbacks: Sequence[Callback] = (),
) -> loop.Trained:
    """What the run ends with, if the program has a finish; else `trained`.

    The head is that of the features which the trained network, the one that was kept, has of all
    images. It counts as one round more: the callbacks hear of it, and where the best round is kept,
    it is compared with the others. The checkpoint stays that of the last round, from which training
    can go on. `engine_of` is as in `opened`.
    """
    program = session.program.closing()
    if program is None:
        return trained
    federation, last = session.federation.under(program), trained.checkpoint
    layout = federation.layout
    vector = layout.vector(session.layout.state_dict(trained.vector))
    state = program.init(vector[layout.shared].clone())
    round, name = last.round + 1, program.algorithm.registered
    own = Session(federation, session.secret, continues=True)
    heard = OneRound(callbacks, round)
    engine = engine_of(federation)
    try:
        start = Checkpoint(0, vector[layout.travelling].clone(), state)
        found = loop.run(own, engine, overall, [heard], start)
        chooses = loop.validates(session, engine)
    finally:
        engine.close()
    once = found.checkpoint
    line = {**heard.line, "round": round, "finish": name}
    vector = session.layout.vector(layout.state_dict(found.vector))
    best, choice = last.best, Choice.of(session.program) if chooses else None
    if choice is not None:
        best = choice.after(best, round, vector[session.layout.travelling], line)
        line["best"] = None if best is None else best.round
    after = replace(
        last,
        seconds=last.seconds + once.seconds,
        bytes_up=last.bytes_up + once.bytes_up,
        bytes_down=last.bytes_down + once.bytes_down,
        best=best,
    )
    notify(callbacks, RoundEnded(line, after, last=True))
    if choice is not None and choice.keep and best is not None and best.round != round:
        return replace(trained, checkpoint=after)
    return loop.Trained(after, vector, found.sums, round, found.unmeasured)
