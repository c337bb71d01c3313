"""What `[codec]` goes together with, apart from protections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsight.compression.difference import Difference
from fedsight.core.errors import Problem

if TYPE_CHECKING:
    from fedsight.core.layout import Layout
    from fedsight.program.program import Program


def difference_of(program: Program, layout: Layout) -> Difference | None:
    """How models are encoded on their way to the sites; None if they are sent whole."""
    pipeline = program.codec.down.pipeline
    if pipeline is None:
        return None
    return Difference(pipeline, layout.shared.stop, layout.travelling.stop)


def problems(program: Program) -> Iterator[Problem]:
    """What can be said without the network."""
    yield from program.codec.check()
    codec, rounds = program.codec, program.rounds
    if codec.up.steps and not program.algorithm.parts:
        cause = "the algorithm sends whole numbers only, which no codec encodes"
        yield Problem("codec.up.steps", cause, "leave out codec.up.steps")
    if not codec.down.steps:
        return
    without = "leave out codec.down.steps"
    if not program.algorithm.parts:
        cause = "the algorithm computes its model at once, and no difference leads there"
        yield Problem("codec.down.steps", cause, without)
    if rounds.buffered:
        cause = "sites of buffered rounds skip models, and a difference is to the last one"
        cure = "set rounds.mode = 'synchronous', or leave out codec.down.steps"
        yield Problem("codec.down.steps", cause, cure)
    if rounds.ema is not None:
        cause = (
            "the average would have to be sent whole, and what is measured is the model that sites "
            "have"
        )
        yield Problem("rounds.ema", cause, "leave it out, or codec.down.steps")
