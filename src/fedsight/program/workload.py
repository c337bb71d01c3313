"""How much a round trains at a site: in epochs or steps, and how many images that shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsight.core.errors import Problem

if TYPE_CHECKING:
    from fedsight.program.program import Program


def length(program: Program) -> int:
    """The epochs of a round, or its steps where the program has `train.steps`: of all phases, of
    the shared model and of a site's own."""
    algorithm, one = program.algorithm, program.train.length
    return sum(phase.length for phase in [*algorithm.phases(one), *algorithm.own_phases(one)])


def images_seen(program: Program, images: int) -> int:
    """How many images a round shows in all phases at a site that has `images`, each as often as it
    is seen; under DP-SGD, which draws them, the expected number."""
    return _shown(program, length(program), images)


def passes_of(program: Program, images: int) -> float:
    """The passes over its `images` images that a site takes in a round: over all phases of a
    model."""
    longest = program.algorithm.longest(program.train.length)
    return _shown(program, longest, images) / max(1, images)


def _shown(program: Program, length: int, images: int) -> int:
    batch = program.train.batch
    if program.train.steps is None:
        return length * images
    return length * (min(batch, images) if program.privacy.unit == "example" else batch)


def problems(program: Program) -> Iterator[Problem]:
    """Draws of images that would be without effect."""
    if program.privacy.unit == "example" and program.train.sampling == "independent":
        cause = "DP-SGD draws the images of a step by itself, each with the same probability"
        yield Problem("train.sampling", cause, "leave it out")
