"""What a program's start, an algorithm of one round before the first, goes together with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.models.base import Network

if TYPE_CHECKING:
    from fedsight.program.program import Program

_LEAVE_OUT = "leave out [start]"


def problems(program: Program) -> Iterator[Problem]:
    """What can be said without the network."""
    opening = program.opening()
    if opening is None or program.start is None:
        return
    name = program.start.registered
    if not program.start.counts:
        cause = f"{name} has no closed form, and would need rounds of its own"
        yield Problem("start.name", cause, "choose one that has, as ridge has")
    if program.privacy.protects:
        cause = f"the sums of {name} would leave the sites without noise"
        yield Problem("start", cause, f"{_LEAVE_OUT}, or set privacy.name = 'none'")
    for found in program.start.check(opening):
        section, _, key = found.where.partition(".")
        where = f"start.{key}" if section == "algorithm" else found.where
        yield Problem(where, found.cause, found.cure)


def network_problems(program: Program, network: Network) -> Iterator[Problem]:
    """Tensors that the start sets, and that the sites would not get with the model."""
    opening = program.opening()
    if opening is None or program.start is None:
        return
    kinds = {entry.name: entry.kind for entry in program.layout(network).entries}
    lost = [
        entry.name
        for entry in opening.layout(network).entries
        if entry.kind == Kind.SHARED and kinds[entry.name] != Kind.SHARED
    ]
    if not lost:
        return
    name, shown = program.start.registered, ", ".join(lost)
    if any(kinds[one] == Kind.FROZEN for one in lost):
        cause = f"{name} sets {shown}, which train.only then freezes"
        yield Problem("start.name", cause, 'add "head" to train.only, or leave out [start]')
    else:
        cause = f"{name} sets {shown}, which {program.algorithm.registered} keeps at the sites"
        yield Problem("start.name", cause, f"{_LEAVE_OUT}, or choose another algorithm")
