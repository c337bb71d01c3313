"""Trains a run longer than it was planned, and keeps its results so far.

The results move into a folder of their own, `rounds-K`, a whole run that can be read as before.
Then run.json is written with the new fingerprint and what came before it, and last run.toml:
whatever is interrupted in between is completed by `settle`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedsight.coordinator.choice import Choice
from fedsight.coordinator.store import EARLIER, WRITTEN, RunStore
from fedsight.core.errors import StoreError
from fedsight.core.files import refuse_links
from fedsight.privacy.base import Protected
from fedsight.program.program import Program

_KEPT = ("run.toml", "run.json", *(name for name in WRITTEN if "checkpoint" not in name))


@dataclass(frozen=True)
class Extension:
    """How many rounds a run has from now on, and what its learning rate does then.

    With `restart` the schedule of `train.schedule` begins again after the rounds planned before;
    otherwise the rest of the run follows the schedule of all its rounds.
    """

    rounds: int
    restart: bool = False

    def of(self, program: Program) -> Program:
        """`program`, extended."""
        before = program.rounds.rounds
        rounds = program.rounds.model_copy(update={"rounds": self.rounds})
        train = program.train
        if self.restart:
            train = train.model_copy(update={"restarts": (*train.restarts, before)})
        return replace(program, rounds=rounds, train=train)


def extend(store: RunStore, longer: Extension, facts: Mapping[str, Any]) -> Program:
    """Make the run in the folder one of more rounds; its program from now on.

    `facts` is what `run.json` is to say of the extended program. Raises StoreError for a run that
    has as many rounds already, or whose noise was planned for fewer.
    """
    program, speed = store.program()
    _refuse(store, program, longer)
    if (store.folder / "summary.json").is_file():
        _keep(store, program.rounds.rounds)
    parent = {
        "fingerprint": program.fingerprint,
        "rounds": program.rounds.rounds,
        "extended_to": longer.rounds,
        "schedule": "restarted" if longer.restart else "continued",
    }
    extended = longer.of(program)
    for name in set(_KEPT) - {"run.toml", "run.json", "history.jsonl"}:
        (store.folder / name).unlink(missing_ok=True)
    store.write_json("run.json", {**facts, "parent": parent})
    _hope_again(store, program)
    store.write_program(extended, speed)
    return extended


def settle(store: RunStore) -> None:
    """Complete an extension that was interrupted before run.toml was written."""
    parent = store.read_json("run.json").get("parent")
    program, speed = store.program()
    if not isinstance(parent, dict) or parent.get("fingerprint") != program.fingerprint:
        return
    rounds = parent.get("extended_to")
    if type(rounds) is not int or rounds <= program.rounds.rounds:
        path = store.folder / "run.json"
        raise StoreError(f"{path} is broken: parent.extended_to is {rounds!r}", "restore the file")
    longer = Extension(rounds, parent.get("schedule") == "restarted")
    _hope_again(store, program)
    store.write_program(longer.of(program), speed)


def _hope_again(store: RunStore, program: Program) -> None:
    """If training has ended early, let it wait for a better round once more."""
    found, choice = store.load_checkpoint(), Choice.of(program)
    if found is None or found.best is None or choice is None or not choice.ends(found.best):
        return
    store.save_checkpoint(replace(found, best=replace(found.best, since=0)))


def _refuse(store: RunStore, program: Program, longer: Extension) -> None:
    planned, mechanism = program.rounds.rounds, program.privacy
    if longer.rounds <= planned:
        raise StoreError(
            f"the run in {store.folder} has {planned} rounds, so it cannot be extended to "
            f"{longer.rounds}",
            "give the number of rounds of the whole run, more than it has",
        )
    if isinstance(mechanism, Protected) and mechanism.epsilon is not None:
        raise StoreError(
            f"the run in {store.folder} was planned to spend epsilon {mechanism.epsilon:g} in "
            f"{planned} rounds: more rounds would spend more",
            "start a new run with more rounds: its noise is then planned for all of them",
        )


def _keep(store: RunStore, rounds: int) -> None:
    """Copy the results so far to `rounds-K`, whole or not at all."""
    kept = store.folder / f"{EARLIER}{rounds}"
    partial = store.folder / f".{kept.name}.partial"
    refuse_links(store.folder, store.delivered.name, kept.name, partial.name)
    if kept.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name in _KEPT:
            if (store.folder / name).is_file():
                # A link stays a link: in a folder from elsewhere it may lead to a private file.
                shutil.copy2(store.folder / name, partial / name, follow_symlinks=False)
        if store.delivered.is_dir():
            shutil.copytree(store.delivered, partial / store.delivered.name, symlinks=True)
        partial.rename(kept)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(
            f"cannot keep the results of {store.folder}: {error.strerror or error}",
            "free some space; nothing was changed",
        ) from error
