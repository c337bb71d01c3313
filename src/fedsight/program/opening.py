"""What a program's start and finish, algorithms of one round before the first and after the last,
go together with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsight.algorithms.base import Algorithm
from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.models.base import Network

if TYPE_CHECKING:
    from fedsight.program.program import Program


def problems(program: Program) -> Iterator[Problem]:
    """What can be said without the network."""
    for section, algorithm, once in _both(program):
        name, leave_out = algorithm.registered, f"leave out [{section}]"
        if not algorithm.counts or algorithm.phases(1):
            cause = f"{name} has no closed form, and would need rounds of its own"
            yield Problem(f"{section}.name", cause, "choose one that has, as ridge has")
        if program.privacy.protects:
            cause = f"the sums of {name} would leave the sites without noise"
            yield Problem(section, cause, f"{leave_out}, or set privacy.name = 'none'")
        for found in algorithm.check(once):
            part, _, key = found.where.partition(".")
            where = f"{section}.{key}" if part == "algorithm" else found.where
            yield Problem(where, found.cause, found.cure)
    if program.finish is not None and not program.algorithm.phases(program.train.length):
        cause = f"{program.algorithm.registered} trains nothing that a finish could follow"
        yield Problem("finish", cause, "leave out [finish], or choose another algorithm")


def network_problems(program: Program, network: Network) -> Iterator[Problem]:
    """Tensors that start or finish sets, and that the sites would not get with the model."""
    entries = program.layout(network).entries
    kinds = {entry.name: entry.kind for entry in entries}
    for section, algorithm, once in _both(program):
        name, leave_out = algorithm.registered, f"leave out [{section}]"
        unfrozen = replace(once, train=once.train.model_copy(update={"only": ()}))
        sets = [e.name for e in unfrozen.layout(network).entries if e.kind == Kind.SHARED]
        lost = [one for one in sets if kinds[one] != Kind.SHARED]
        shown = ", ".join(lost)
        if any(kinds[one] == Kind.FROZEN for one in lost):
            cause = f"{name} sets {shown}, which train.only then freezes"
            yield Problem(f"{section}.name", cause, f'add "head" to train.only, or {leave_out}')
        elif lost:
            cause = f"{name} sets {shown}, which {program.algorithm.registered} keeps at the sites"
            yield Problem(f"{section}.name", cause, f"{leave_out}, or choose another algorithm")
        elif section == "finish" and (
            program.algorithm.owns or any(kind == Kind.PERSONAL for kind in kinds.values())
        ):
            cause = (
                f"{name} adds features of one network, and {program.algorithm.registered} keeps a "
                "part of it, or another one, at each site"
            )
            yield Problem("finish.name", cause, f"{leave_out}, or choose another algorithm")


def _both(program: Program) -> Iterator[tuple[str, Algorithm, Program]]:
    """(section, algorithm, the program of its round) of what there is."""
    if program.start is not None and (opening := program.opening()) is not None:
        yield "start", program.start, opening
    if program.finish is not None and (closing := program.closing()) is not None:
        yield "finish", program.finish, closing
