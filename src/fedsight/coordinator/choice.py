"""Which round's model is kept, and when training ends early, by the rounds' figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedsight.program.program import Program


@dataclass(frozen=True)
class Best:
    """The best of the rounds evaluated so far."""

    round: int
    value: float
    since: int = 0  # rounds evaluated after it, none of which was better
    vector: Tensor | None = None  # the travelling part of its model, if that is to be kept


@dataclass(frozen=True)
class Choice:
    """The rule by which rounds are compared (Prechelt 1998, doi:10.1007/3-540-49430-8_3).

    A later round must be better, not as good. A round without the figure does not count. The
    figures are those of the validation part: `federate` refuses a program without one.
    """

    figure: str
    falls: bool  # whether a lower figure is better
    keep: bool
    patience: int | None

    @classmethod
    def of(cls, program: Program) -> Choice | None:
        """The rule of a program; None if every round is run and the last one kept."""
        rounds, task = program.rounds, program.task
        if not rounds.compared:
            return None
        figure = rounds.keep_by or task.headline
        return cls(figure, figure in task.falling(), rounds.keep == "best", rounds.patience)

    def after(
        self, best: Best | None, round: int, vector: Tensor, line: Mapping[str, Any]
    ) -> Best | None:
        """The best once `round`, with the model `vector` and this history line, is measured."""
        value = line.get(self.figure)
        if value is None:
            return best
        if best is None or (value < best.value if self.falls else value > best.value):
            return Best(round, value, vector=vector if self.keep else None)
        return replace(best, since=best.since + 1)

    def ends(self, best: Best | None) -> bool:
        """Whether training ends, because no round since the best was better."""
        return best is not None and self.patience is not None and best.since >= self.patience

    def told(self, best: Best | None, trained: int, rounds: int) -> dict[str, Any]:
        """What `summary.json` says of a run that has trained so many of its `rounds`."""
        kept = best.round if self.keep and best is not None else trained
        early = trained < rounds and self.ends(best)
        return {
            "round": kept,
            "keep": "best" if self.keep else "last",
            "by": self.figure,
            "best": None if best is None else best.round,
            "value": None if best is None else best.value,
            "stopped": "patience" if early else None,
        }
