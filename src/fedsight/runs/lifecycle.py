"""A run from its program to its finished folder; the same for a first start and a resumption."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedsight.core.errors import Interrupted, StoreError
from fedsight.core.types import Metrics
from fedsight.engines.base import (Engine)
from fedsight.program.federation import (Federation)
from fedsight.engines.workers import WorkerEngine
from fedsight.client.memory import MemoryStore
from fedsight.program import config
from fedsight.coordinator import loop
from fedsight.evaluation.conclusion import Command, conclude
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.description import describe
from fedsight.program.federation import (federate)
from fedsight.program.program import Program, Speed
from fedsight.coordinator.callbacks import Callback
from fedsight.coordinator.store import Checkpoint, RunStore

SAME = ("data", "classes", "sites", "model")  # what resumption may not find changed in `run.json`


def start(
    program: Program, speed: Speed, store: RunStore, command: Command, reporters: Sequence[Callback]
) -> dict[str, Any]:
    """Run `program` from the beginning in the store's folder; returns the summary."""
    config.check(program, speed)
    federation = federate(program)
    with _resumable(store):
        store.create(program, speed, describe(federation, Evaluator(federation), command))
        return _embedded(federation, speed, store, command, None, reporters)


def resume(store: RunStore, workers: int | None, reporters: Sequence[Callback]) -> dict[str, Any]:
    """Go on with the run in the store's folder after any interruption; returns the summary."""
    program, speed = store.program()
    if workers is not None:
        speed = speed.model_copy(update={"workers": workers})
    facts = store.read_json("run.json")
    with _resumable(store):
        federation = federate(program)
        command: Command = "compare" if facts.get("command") == "compare" else "run"
        refuse_change(store, facts, describe(federation, Evaluator(federation), command))
        checkpoint = rewound(store)
        MemoryStore(store.memory).rewind(checkpoint.round if checkpoint else 0)
        return _embedded(federation, speed, store, command, checkpoint, reporters)


def rewound(store: RunStore) -> Checkpoint | None:
    """The last checkpoint, with all that the folder tells of later rounds dropped.

    None when there is none: the run begins again. What sites remember is rewound where it lies.
    """
    checkpoint = store.load_checkpoint()
    store.tidy()
    store.rewind_history(checkpoint.round if checkpoint else 0)
    return checkpoint


@contextlib.contextmanager
def _resumable(store: RunStore) -> Iterator[None]:
    """Ctrl-C, whenever it comes, leaves a folder that can be gone on with, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped by Ctrl-C; the last checkpoint in {store.folder} is whole",
            f"go on with: fedsight resume {store.folder}",
        ) from None


def refuse_change(store: RunStore, before: dict[str, Any], now: dict[str, Any]) -> None:
    """The rounds to come must train the same program on the same images as those before.

    `before` and `now` are the content of `run.json`; raises StoreError where they tell of another
    program, other images or another model. Files may have been moved in between.
    """
    now = json.loads(json.dumps(now))
    if before.get("fingerprint") != now["fingerprint"]:
        raise StoreError(
            f"{store.folder / 'run.toml'} is not the program that this run began with",
            "restore the file, or start a new run with another --out",
        )
    if any(_content(before.get(key)) != _content(now[key]) for key in SAME):
        raise StoreError(
            f"the data or the model of {store.folder} are not those that this run began with",
            "restore the data, or start a new run with another --out",
        )


def _content(facts: Any) -> Any:
    """Facts without what names files by their paths; counts and hashes tell of these too."""
    if not isinstance(facts, dict):
        return facts
    return {key: value for key, value in facts.items() if key not in ("skipped", "notes")}


@dataclass
class _Recorder:
    """Writes each round into the run folder, then tells the reporters."""

    store: RunStore
    every: int
    reporters: Sequence[Callback]

    def on_reply(self) -> None:
        """A client is done."""
        for reporter in self.reporters:
            reporter.reply()

    def on_round(self, line: loop.Line, checkpoint: Checkpoint, last: bool) -> None:
        """History first: a checkpoint vouches for the lines up to its round.

        Reporters come last: whatever goes wrong with one, the round is safe.
        """
        self.store.append_history(line)
        if last or checkpoint.round % self.every == 0:
            self.store.save_checkpoint(checkpoint)
        for reporter in self.reporters:
            reporter.round(line)


def go(
    federation: Federation,
    engine: Engine,
    speed: Speed,
    store: RunStore,
    command: Command,
    checkpoint: Checkpoint | None,
    reporters: Sequence[Callback],
    pictures: bool = True,
    secret: int | None = None,
) -> dict[str, Any]:
    """Train on `engine`, which stays open, and write all that the folder holds at the end.

    From `checkpoint`, or from the beginning; the folder was made by `RunStore.create`. Without
    `pictures` the evaluation shows no images: a coordinator far from the sites has none. `secret`
    is where the coordinator's noise comes from, None: the program's seed. Returns the summary.
    """
    recorder = _Recorder(store, speed.checkpoint_every, reporters)
    trained = _train(federation, engine, recorder, checkpoint, secret)
    return conclude(federation, speed, store, command, trained, reporters, pictures, secret)


def _embedded(
    federation: Federation,
    speed: Speed,
    store: RunStore,
    command: Command,
    checkpoint: Checkpoint | None,
    reporters: Sequence[Callback],
) -> dict[str, Any]:
    """`go` on worker processes of this machine, which end before those of the baselines start."""
    recorder = _Recorder(store, speed.checkpoint_every, reporters)
    engine = WorkerEngine(federation, speed, store.memory)
    try:
        trained = _train(federation, engine, recorder, checkpoint)
    finally:
        engine.close()
    return conclude(federation, speed, store, command, trained, reporters, pictures=True)


def _train(
    federation: Federation,
    engine: Engine,
    recorder: _Recorder,
    checkpoint: Checkpoint | None,
    secret: int | None = None,
) -> loop.Trained:
    evaluator = Evaluator(federation)

    def overall(sums: list[Metrics]) -> dict[str, float]:
        return dict(evaluator.figures(sums).overall)

    for reporter in recorder.reporters:
        reporter.begin(federation, checkpoint.round if checkpoint else 0)
    return loop.run(federation, engine, overall, recorder, checkpoint, secret)
