"""The learning rate of each local step, where it changes within a round (`train.schedule_by`)."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

from fedsight.client.training import LocalTraining
from fedsight.program.program import Program
from fedsight.program.train import Train


@dataclass(frozen=True)
class Pace:
    """The rates of a round's local steps, as shares of the rate at the round's start."""

    train: Train
    round: int  # from 1
    rounds: int
    steps: int  # local steps of this round, of all phases together

    @classmethod
    def of(
        cls,
        program: Program,
        round: int,
        training: LocalTraining,
        images: int,
        share: Sized | None = None,
        own: bool = False,
    ) -> Pace:
        """The pace of a site with so many images, or of the batches in `share`; `own`: that of its
        own model."""
        algorithm = program.algorithm
        phases = (algorithm.own_phases if own else algorithm.phases)(program.train.length)
        steps = sum(phase.length for phase in phases)
        if program.train.steps is None:  # they are epochs
            steps *= training.steps(images, program.train.batch)
        if share is not None:
            steps = len(share)
        return cls(program.train, round, program.rounds.rounds, steps)

    @property
    def start(self) -> float:
        """The learning rate at the start of the round."""
        return self.train.rate(self.round, self.rounds)

    def at(self, step: int) -> float:
        """The share of `start` in the step that has `step` others before it.

        Exactly 1 where the rate changes between rounds only.
        """
        if self.train.schedule_by == "round":
            return 1.0
        return self.train.rate(self.round, self.rounds, step / self.steps) / self.start

    @property
    def mean(self) -> float:
        """The mean learning rate over the steps of the round."""
        return self.train.mean_rate(self.round, self.rounds, self.steps)
