"""The length of a phase that has one of its own: in epochs or steps, as the program counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsight.core.errors import Problem

if TYPE_CHECKING:
    from fedsight.program.program import Program


def problems(program: Program, phase: str, epochs: int | None, steps: int | None) -> list[Problem]:
    """`algorithm.PHASE_epochs` where the program counts steps, or PHASE_steps where it does not."""
    if program.train.steps is None and steps is not None:
        cause = "without train.steps a round is counted in epochs"
        cure = f"set train.steps, or write algorithm.{phase}_epochs"
        return [Problem(f"algorithm.{phase}_steps", cause, cure)]
    if program.train.steps is not None and epochs is not None:
        cause = "with train.steps a round is counted in steps"
        cure = f"write algorithm.{phase}_steps, or leave out train.steps"
        return [Problem(f"algorithm.{phase}_epochs", cause, cure)]
    return []
