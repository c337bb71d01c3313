"""The typed events of a run, and the callback that receives them.

The screen, the run folder and the trackers are callbacks. An event is sent after what it reports
has happened, to the callbacks in the order in which they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this, and starts without PyTorch
    from fedsight.coordinator.store import Checkpoint
    from fedsight.engines.base import Arrival
    from fedsight.program.federation import Federation


@dataclass(frozen=True)
class RunBegan:
    """Training starts; `done` rounds are already complete."""

    federation: Federation
    done: int


@dataclass(frozen=True)
class RoundBegan:
    """The sites of a round are asked to train; the round before may still be unsaved."""

    round: int
    sites: Sequence[str]


@dataclass(frozen=True)
class ReplyArrived:
    """A site's reply was accepted or rejected."""

    arrival: Arrival


@dataclass(frozen=True)
class RoundComputed:
    """A round's model is computed, and nobody has seen it; the figures are still to be measured."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class RoundEnded:
    """A round is complete; `line` is its history line, `last` says whether training ends here.

    `checkpoint` is None when another process trains and this one follows its history.
    """

    line: Mapping[str, Any]
    checkpoint: Checkpoint | None
    last: bool


@dataclass(frozen=True)
class BaselinesBegan:
    """The baselines start; together they have `rounds` rounds."""

    rounds: int


@dataclass(frozen=True)
class BaselineRoundEnded:
    """A round of a baseline is complete."""


@dataclass(frozen=True)
class RunEnded:
    """The run is complete; `summary` is in the run folder."""

    summary: Mapping[str, Any]


Event = (
    RunBegan
    | RoundBegan
    | ReplyArrived
    | RoundComputed
    | RoundEnded
    | BaselinesBegan
    | BaselineRoundEnded
    | RunEnded
)


class Callback:
    """Receives a run's events and ignores them; a subclass handles those that it needs."""

    def on(self, event: Event) -> None:
        """Handle an event. An exception raised here ends the run; the last checkpoint is intact."""

    def close(self) -> None:
        """The run has ended, whether finished or not."""


def notify(callbacks: Iterable[Callback], event: Event) -> None:
    """Send an event to each callback in turn."""
    for callback in callbacks:
        callback.on(event)
