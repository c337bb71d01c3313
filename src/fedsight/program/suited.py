"""Whether a network is one that the program's algorithm can train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsight.core.errors import ModelError, Problem
from fedsight.core.layout import Kind
from fedsight.models.base import Network
from fedsight.models.features import linear_head

if TYPE_CHECKING:
    from fedsight.program.program import Program


def problems(program: Program, network: Network) -> list[Problem]:
    """What an algorithm with models at the sites, or with a penalty on features, cannot train."""
    algorithm, layout = program.algorithm, program.layout(network)
    if algorithm.owns and layout.length(Kind.PERSONAL):
        cause = (
            f"{algorithm.registered} keeps a whole model at each site beside the shared one, "
            f"of which the task '{program.task.registered}' keeps a part there already"
        )
        return [Problem("algorithm.name", cause, "choose another algorithm")]
    if algorithm.penalises:
        try:
            linear_head(network)
        except ModelError as error:
            return [Problem("model.name", error.cause, error.cure)]
    kinds = {entry.name: entry.kind for entry in layout.entries}
    mixes = algorithm.owns and not algorithm.own_phases(1)
    if all(kinds[name] == Kind.FROZEN for pair in network.statistics for name in pair):
        buffers = [name for name, kind in kinds.items() if kind == Kind.BUFFER]
        return _unmixed(program, buffers[0]) if mixes and buffers else []
    if not (algorithm.penalises or mixes) or algorithm.equips:
        return []
    cause = (
        f"{algorithm.registered} uses several models at a site, and BatchNorm's running statistics "
        "are those of one"
    )
    return [Problem("model.norm", cause, "set model.norm = 'group' (the default) or 'frozen'")]


def _unmixed(program: Program, buffer: str) -> list[Problem]:
    cause = (
        f"{program.algorithm.registered} mixes the parameters of two models, and the network's "
        f"buffer '{buffer}' is not one"
    )
    cure = "register it with persistent=False if it never changes, or choose ditto"
    return [Problem("model.name", cause, cure)]
