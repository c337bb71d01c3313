"""What happens in a run, as typed events, and the one type that listens to them.

The screen, the run folder and trackers are callbacks. An event is sent after what it tells of is
done, in the order in which callbacks are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this, and starts without PyTorch
    from fedsight.coordinator.store import Checkpoint
    from fedsight.engines.base import Arrival
    from fedsight.program.federation import Federation


@dataclass(frozen=True)
class RunBegan:
    """Training starts, with `done` rounds behind it."""

    federation: Federation
    done: int


@dataclass(frozen=True)
class ReplyArrived:
    """A site's reply was accepted or rejected."""

    arrival: Arrival


@dataclass(frozen=True)
class RoundEnded:
    """A round is done; `line` is its line of the history, `last` whether training ends with it.

    `checkpoint` is None where another process trains, and this one follows its history.
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
    """A round of a baseline is done."""


@dataclass(frozen=True)
class RunEnded:
    """Everything is done; `summary` is in the run folder."""

    summary: Mapping[str, Any]


Event = RunBegan | ReplyArrived | RoundEnded | BaselinesBegan | BaselineRoundEnded | RunEnded


class Callback:
    """Listens to a run and does nothing; a subclass looks for the events that it cares about."""

    def on(self, event: Event) -> None:
        """Hear of an event. What is raised here ends the run; the last checkpoint is whole."""

    def close(self) -> None:
        """The run is over, finished or not."""


def tell(callbacks: Iterable[Callback], event: Event) -> None:
    """Send an event to each callback in turn."""
    for callback in callbacks:
        callback.on(event)
