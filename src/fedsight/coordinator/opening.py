"""The opening of a run: one round of another algorithm sets the model that training begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedsight.coordinator import loop
from fedsight.coordinator.callbacks import (
    Callback,
    Event,
    ReplyArrived,
    RoundBegan,
    RoundEnded,
    notify,
)
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.engines.base import Engine
from fedsight.program.federation import Federation

BEFORE = 0  # the round of the opening, in the history and of its checkpoint


@dataclass
class OneRound(Callback):
    """Keeps the history line of a run of one round, and passes on the replies to it as those of
    round `number`."""

    callbacks: Sequence[Callback]
    number: int
    line: dict[str, Any] = field(default_factory=dict)

    def on(self, event: Event) -> None:
        """Keep a round's line, pass on who is asked and who replies; nothing else is for the run's
        own callbacks."""
        if isinstance(event, RoundBegan):
            notify(self.callbacks, replace(event, round=self.number))
        elif isinstance(event, ReplyArrived):
            notify(self.callbacks, event)
        elif isinstance(event, RoundEnded):
            self.line = dict(event.line)


def opened(
    session: Session,
    engine_of: Callable[[Federation], Engine],
    overall: loop.Overall,
    callbacks: Sequence[Callback] = (),
) -> Checkpoint | None:
    """The checkpoint before the first round, if the program has a start; else None.

    `engine_of` makes the engine for the federation under the program of the start; it is closed
    afterwards. The callbacks hear of one more round, number 0.
    """
    program = session.program.opening()
    if program is None:
        return None
    federation = session.federation.under(program)
    heard = OneRound(callbacks, BEFORE)
    engine = engine_of(federation)
    try:
        trained = loop.run(Session(federation, session.secret), engine, overall, [heard])
    finally:
        engine.close()
    layout = session.layout
    vector = layout.vector(federation.layout.state_dict(trained.vector))
    state = session.program.init(vector[layout.shared].clone())
    travelling = vector[layout.travelling].clone()
    best = trained.checkpoint.best  # training may never reach a better model than the opening's
    if best is not None:
        model = None if best.vector is None else travelling
        best = replace(best, round=BEFORE, vector=model)
    found = replace(trained.checkpoint, round=BEFORE, vector=travelling, state=state, best=best)
    line = {**heard.line, "round": BEFORE}
    if line.get("best") is not None:
        line["best"] = BEFORE
    notify(callbacks, RoundEnded(line, found, last=False))
    return found
