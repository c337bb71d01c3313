"""The life of a run, from its program to its finished folder, started or resumed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.coordinator import loop
from fedsight.coordinator.asked import answered, asked
from fedsight.coordinator.callbacks import Callback, Event, RoundEnded, RunBegan, notify
from fedsight.coordinator.closing import closed
from fedsight.coordinator.folders import claimed
from fedsight.coordinator.live import Live
from fedsight.coordinator.opening import opened
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint, RunStore
from fedsight.core.errors import ConfigError, Interrupted, Paused, StoreError
from fedsight.core.settings import without_none
from fedsight.core.types import Metrics
from fedsight.data.contents import Hashed, contents
from fedsight.engines.base import Engine
from fedsight.engines.group import Group
from fedsight.evaluation.conclusion import Command, Conclusion, conclude
from fedsight.evaluation.description import describe
from fedsight.evaluation.figures import Evaluator
from fedsight.program import config
from fedsight.program.federation import Federation, federate
from fedsight.program.kept import keep
from fedsight.program.program import Program, Speed
from fedsight.runs.extension import Extension, extend, settle
from fedsight.runs.machines import engine_for, share


@dataclass(frozen=True)
class Start:
    """What to begin: a program, how fast, where, by which command, and over what (`force`)."""

    program: Program
    speed: Speed
    store: RunStore
    command: Command
    force: bool = False  # in place of a run that is there
    group: Group | None = None  # the machines that train together, of which this is number 0


def start(what: Start, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Run a program from the beginning; returns the summary.

    Raises StoreError if the folder holds a run (unless forced), or another process is in it.
    """
    program, speed, store, command = what.program, what.speed, what.store, what.command
    with claimed(store.folder):
        store.require_place(what.force)  # before the data are opened, which may take long
        config.check(program, speed)
        session = Session(federate(program))
        with _resumable(store) as live:
            facts = describe(session, command, contents(session.federation.dataset, speed.hash))
            store.create(program, speed, facts, what.force)
            conclusion = Conclusion(session, speed, store, command, [live, *callbacks])
            return _embedded(conclusion, None, what.group)


def resume(
    store: RunStore,
    workers: int | None,
    callbacks: Sequence[Callback],
    longer: Extension | None = None,
    device: str | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Continue the run in the store's folder after an interruption, or `longer` than planned.

    `workers` and `device` replace those that the run was started with; `group` is as in `Start`.
    Returns the summary. Raises StoreError if the program or the data have changed, if the run
    cannot be extended, or another process is in the folder.
    """
    store.program()  # refuses a folder that is not a run, before a lock is put there
    with claimed(store.folder):
        changes = {"workers": workers, "device": device}
        return _resumed(store, without_none(changes), callbacks, longer, group)


def _resumed(
    store: RunStore,
    changes: Mapping[str, object],
    callbacks: Sequence[Callback],
    longer: Extension | None,
    group: Group | None,
) -> dict[str, Any]:
    settle(store)
    program, speed = store.program()
    speed = speed.model_copy(update=changes)
    if problems := speed.check():
        raise ConfigError(problems)
    facts = store.read_json("run.json")
    with _resumable(store) as live:
        session = Session(federate(program))
        command: Command = "compare" if facts.get("command") == "compare" else "run"
        # as when the run began, whatever run.toml says by now
        how: Hashed = (facts.get("data") or {}).get("hashed", "pieces")
        hashes = contents(session.federation.dataset, how)
        refuse_change(store, facts, describe(session, command, hashes))
        if longer is not None:
            federation = session.federation
            session = Session(federation.under(longer.of(program)))
            extend(store, longer, describe(session, command, hashes))
        checkpoint = rewound(store)
        if checkpoint is not None:
            _require_fit(store, session, checkpoint)
        MemoryStore(store.memory).rewind(checkpoint.round if checkpoint else 0)
        conclusion = Conclusion(session, speed, store, command, [live, *callbacks])
        return _embedded(conclusion, checkpoint, group)


def _require_fit(store: RunStore, session: Session, checkpoint: Checkpoint) -> None:
    """StoreError unless the checkpoint is one of this program and network."""
    program, initial = session.program, session.initial[session.layout.travelling]
    state = program.init(session.initial[session.layout.shared])
    shapes: dict[str, tuple[Tensor | None, Tensor]] = {"the model": (checkpoint.vector, initial)}
    if program.rounds.ema is not None and checkpoint.round:  # there is none before the first
        shapes["the moving average"] = (checkpoint.average, initial)
    if program.codec.down.steps and checkpoint.round:
        held = checkpoint.held
        shapes["what sites have"] = (None if held is None else held.vector, initial)
    shapes |= {
        f"the model after round {round}": (value, initial)
        for round, value in checkpoint.earlier.items()
    }
    shapes |= {name: (checkpoint.state.get(name), value) for name, value in state.items()}
    wrong = [
        name for name, (one, other) in shapes.items() if one is None or one.shape != other.shape
    ]
    losses = checkpoint.losses
    if losses is not None and len(losses) != session.federation.population:
        wrong.append("the losses of the sites")
    if (best := checkpoint.best) is not None and best.round > checkpoint.round:
        wrong.append(f"the best round {best.round}")
    if checkpoint.round > session.protection.rounds:
        wrong.append(f"round {checkpoint.round}")
    if wrong:
        raise StoreError(
            f"the checkpoint in {store.folder} is not one of this program: {', '.join(wrong)}",
            "restore the file, or start the run again with another --out",
        )


def rewound(store: RunStore) -> Checkpoint | None:
    """The last checkpoint; everything in the folder about later rounds is dropped.

    None if there is none: the run starts again. The sites' memory is rewound in place.
    """
    checkpoint = store.load_checkpoint()
    store.remove_partial_files()
    store.rewind_history(checkpoint.round if checkpoint else -1)
    return checkpoint


@contextlib.contextmanager
def _resumable(store: RunStore) -> Iterator[Live]:
    """Turn Ctrl-C into Interrupted, which says how to continue the run, and tell the run's folder
    what goes on; a request to stop is Ctrl-C too."""
    live = Live(store.folder, stops=True)
    with live.watched():
        try:
            yield live
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; the last checkpoint in {store.folder} is complete",
                f"continue with: fedsight resume {store.folder}",
            ) from None


def refuse_change(store: RunStore, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a resumed run has the same program, images and model as before.

    `before` and `now` are contents of `run.json`; raises StoreError if the program, the images or
    the model differ. Files may have been moved in between.
    """
    now = json.loads(json.dumps(now))
    if before.get("fingerprint") != now["fingerprint"]:
        raise StoreError(
            f"{store.folder / 'run.toml'} is not the program that this run started with",
            "restore the file, or start a new run with another --out",
        )
    if changed := list(_changed(before, now)):
        raise StoreError(
            f"{' and '.join(changed)} of {store.folder} are not those that this run started with",
            "restore them, or start a new run with another --out",
        )


def _changed(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What has changed in `run.json`, in words."""
    was, data = before.get("data") or {}, now["data"]
    hashes, found = was.get("contents") or {}, data.get("contents") or {}
    yield from (f"the {name}" for name in sorted(hashes) if hashes[name] != found.get(name))
    if hashes == found and _content(was) != _content(data):
        yield "the data"
    for key in ("classes", "sites", "model"):
        if _content(before.get(key)) != _content(now[key]):
            yield f"the {key}"


def _content(facts: Any) -> Any:
    """Facts without the paths of files and what was said; counts and hashes identify the data."""
    if not isinstance(facts, dict):
        return facts
    told = ("skipped", "notes", "passed_over", "contents", "hashed")
    return {key: value for key, value in facts.items() if key not in told}


@dataclass
class _Recorder(Callback):
    """Writes each round into the run folder; whether the run is to pause is decided here."""

    store: RunStore
    every: int
    pausing: bool = False

    def on(self, event: Event) -> None:
        """Write the history first: a checkpoint implies that its rounds' lines are complete."""
        if isinstance(event, RoundEnded) and event.checkpoint is not None:
            self.store.append_history(event.line)
            if event.checkpoint.round < event.line["round"]:  # the closing: training can go on
                return
            self.pausing = asked(self.store.folder) == "pause"
            if event.last or self.pausing or event.checkpoint.round % self.every == 0:
                self.store.save_checkpoint(event.checkpoint)


@dataclass
class _Pauser(Callback):
    """Ends the run after a round whose checkpoint was written because it is to pause."""

    recorder: _Recorder

    def on(self, event: Event) -> None:
        """Raise Paused."""
        if isinstance(event, RoundEnded) and self.recorder.pausing:
            folder = self.recorder.store.folder
            answered(folder)
            raise Paused(
                f"paused after round {event.line['round']}, as asked",
                f"continue with: fedsight resume {folder}",
            )


def go(
    run: Conclusion,
    engine: Engine,
    checkpoint: Checkpoint | None,
    unmeasured: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train on `engine`, which stays open, and write all files of a finished run.

    From `checkpoint`, or from the beginning, with what is known of the round after it; the folder
    was made by `RunStore.create`. Returns the summary.
    """
    _began(run, checkpoint)
    return conclude(run, _train(run, engine, _recorded(run), checkpoint, unmeasured))


def _embedded(
    run: Conclusion, checkpoint: Checkpoint | None, group: Group | None
) -> dict[str, Any]:
    """`go` on worker processes of this machine and of those of the group, which end before those of
    the baselines start."""
    _began(run, checkpoint)
    if group is not None:
        share(group, run.session, checkpoint)
    trained = trained_by(run, checkpoint, group, _recorded(run))
    return conclude(run, trained)


def trained_by(
    run: Conclusion,
    checkpoint: Checkpoint | None,
    group: Group | None,
    callbacks: Sequence[Callback],
) -> loop.Trained:
    """Train on worker processes of this machine: all of the run, or this machine's share."""
    federation, speed, memory = run.session.federation, run.speed, run.store.memory
    overall = _overall(federation.validating or federation)
    engine_of = partial(engine_for, speed=speed, group=group)
    if checkpoint is None:
        keep(federation, speed, memory.parent)  # for both, where its layers end
        checkpoint = opened(run.session, engine_of, overall, callbacks)
    engine = engine_for(federation, speed, group, memory)
    try:
        trained = _train(run, engine, callbacks, checkpoint)
    finally:
        engine.close()
    return closed(run.session, engine_of, overall, trained, callbacks)


def _train(
    run: Conclusion,
    engine: Engine,
    callbacks: Sequence[Callback],
    checkpoint: Checkpoint | None,
    unmeasured: Checkpoint | None = None,
) -> loop.Trained:
    federation = run.session.federation
    validating = federation.validating if loop.validates(run.session, engine) else None
    overall = _overall(validating or federation)
    return loop.run(run.session, engine, overall, callbacks, checkpoint, unmeasured)


def _began(run: Conclusion, checkpoint: Checkpoint | None) -> None:
    notify(run.callbacks, RunBegan(run.session.federation, checkpoint.round if checkpoint else 0))


def _recorded(run: Conclusion) -> list[Callback]:
    """The run's callbacks, and first of all (but for `before`) the folder, so that a round is saved
    even if another one fails; last what may end the run, when all have seen the round."""
    recorder = _Recorder(run.store, run.speed.checkpoint_every)
    return [*run.before, recorder, *run.callbacks, _Pauser(recorder)]


def _overall(federation: Federation) -> loop.Overall:
    """A round's figures from the sums of the federation's views."""
    evaluator = Evaluator(federation)

    def overall(sums: list[Metrics]) -> dict[str, float]:
        figures = evaluator.figures(sums)
        error = figures.errors.get("score")
        return {**figures.overall, **({} if error is None else {"score_error": error})}

    return overall
