"""What is wrong with the integer parts that an algorithm declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsight.core.errors import Problem
from fedsight.core.sums import LIMIT
from fedsight.core.types import PartSpec

if TYPE_CHECKING:
    from fedsight.program.federation import Federation


def integer_problems(federation: Federation) -> list[Problem]:
    """What is wrong with the integer parts that the program's algorithm declares."""
    if found := federation.program.privacy.problems(federation.plan):
        return found
    specs, terms = federation.integers, federation.terms
    for part, spec in specs.items():
        if not isinstance(spec, PartSpec) or not spec.exact:
            cause = f"the integer part '{part}' is not described by a PartSpec of torch.int64"
            return [Problem("algorithm", cause, "correct what `integer_parts` returns")]
        if part in federation.program.parts:
            cause = f"two parts of a reply are called '{part}'"
            found.append(Problem("algorithm", cause, "rename the integer part"))
        if spec.bound is not None and spec.bound * terms > LIMIT:
            cause = (
                f"the sum of '{part}' over {terms} sites, each up to {spec.bound:,}, may leave 64 "
                "bits"
            )
            cure = "let the algorithm use fewer bits per value, or let fewer sites take part"
            found.append(Problem("algorithm", cause, cure))
    return found
