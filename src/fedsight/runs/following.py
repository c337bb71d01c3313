"""What a machine other than number 0 does in a run on several: train, and write nothing."""

from __future__ import annotations

from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.settings import without_none
from fedsight.engines.group import Group
from fedsight.evaluation.conclusion import Conclusion
from fedsight.program import config
from fedsight.program.federation import federate
from fedsight.program.program import Program, Speed
from fedsight.runs.lifecycle import trained_by
from fedsight.runs.machines import begun


def follow(group: Group, store: RunStore, program: Program, speed: Speed) -> None:
    """Train this machine's share of the sites, in a run that number 0 starts or resumes.

    Of the store's folder only the memory of these sites is used.
    """
    config.check(program, speed)
    session = Session(federate(program))
    checkpoint = begun(group, session, store.memory)
    trained_by(Conclusion(session, speed, store, "run", []), checkpoint, group, [])


def resumed(group: Group, store: RunStore, workers: int | None, device: str | None) -> None:
    """`follow` a run that is resumed, whose folder this machine can read."""
    program, speed = store.program()
    changes = without_none({"workers": workers, "device": device})
    follow(group, store, program, speed.model_copy(update=changes))
