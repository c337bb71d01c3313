"""A run on several machines: number 0 keeps it, the others follow with their share of the sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.core.errors import EngineError
from fedsight.data.contents import contents
from fedsight.engines.base import Engine
from fedsight.engines.group import Group
from fedsight.engines.machines import MachinesEngine
from fedsight.engines.workers import WorkerEngine
from fedsight.program.federation import Federation
from fedsight.program.program import Speed


def engine_for(
    federation: Federation, speed: Speed, group: Group | None, memory: Path | None = None
) -> Engine:
    """The engine of a run on this machine alone, or on those of the group."""
    if group is None:
        return WorkerEngine(federation, speed, memory)
    return MachinesEngine(federation, speed, group, memory)


def share(group: Group, session: Session, checkpoint: Checkpoint | None) -> None:
    """Number 0 tells the others what it begins from."""
    group.given((_identity(session), checkpoint))
    group.meet()  # before any memory is written


def begun(group: Group, session: Session, memory: Path) -> Checkpoint | None:
    """What number 0 begins from, with this machine's memory rewound to it.

    Raises EngineError if this machine has another program or other images.
    """
    given: tuple[Any, Checkpoint | None] = group.given(None)
    theirs, checkpoint = given
    for what, here in _identity(session).items():
        if here != theirs[what]:
            raise EngineError(
                f"machine {group.rank} of {group.size} has another {what} than machine 0",
                "start the same command with the same files on all machines",
            )
    MemoryStore(memory).rewind(checkpoint.round if checkpoint else 0)
    group.meet()
    return checkpoint


def _identity(session: Session) -> dict[str, Any]:
    return {
        "program": session.program.fingerprint,
        "data set": contents(session.federation.dataset, "pieces"),
    }
