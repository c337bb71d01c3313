"""A run from its program to its finished folder; the same for a first start and a resumption."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsight.core.errors import Interrupted, StoreError
from fedsight.core.layout import Kind
from fedsight.core.types import Metrics
from fedsight.engine.base import Federation
from fedsight.engine.embedded import EmbeddedEngine
from fedsight.engine.memory import MemoryStore
from fedsight.run import compare as baselines
from fedsight.run import config, loop
from fedsight.run.evaluate import Evaluator, Figures, worst
from fedsight.run.facts import describe
from fedsight.run.federate import federate
from fedsight.run.program import Program, Speed
from fedsight.run.reporter import Reporter
from fedsight.run.samples import answers
from fedsight.run.store import Checkpoint, RunStore

Command = Literal["run", "compare"]


def start(
    program: Program, speed: Speed, store: RunStore, command: Command, reporters: Sequence[Reporter]
) -> dict[str, Any]:
    """Run `program` from the beginning in the store's folder; returns the summary."""
    config.check(program, speed)
    federation = federate(program)
    with _resumable(store):
        store.create(program, speed, describe(federation, Evaluator(federation), command))
        return _go(federation, speed, store, command, None, reporters)


def resume(store: RunStore, workers: int | None, reporters: Sequence[Reporter]) -> dict[str, Any]:
    """Go on with the run in the store's folder after any interruption; returns the summary."""
    program, speed = store.program()
    if workers is not None:
        speed = speed.model_copy(update={"workers": workers})
    facts = store.read_json("run.json")
    with _resumable(store):
        federation = federate(program)
        command: Command = "compare" if facts.get("command") == "compare" else "run"
        _refuse_change(store, facts, describe(federation, Evaluator(federation), command))
        checkpoint = store.load_checkpoint()
        done = checkpoint.round if checkpoint else 0
        store.tidy()
        store.rewind_history(done)
        MemoryStore(store.memory).rewind(done)
        return _go(federation, speed, store, command, checkpoint, reporters)


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


def _refuse_change(store: RunStore, before: dict[str, Any], now: dict[str, Any]) -> None:
    """The rounds to come must train the same program on the same images as those before."""
    now = json.loads(json.dumps(now))
    if before.get("fingerprint") != now["fingerprint"]:
        raise StoreError(
            f"{store.folder / 'run.toml'} is not the program that this run began with",
            "restore the file, or start a new run with another --out",
        )
    if any(before.get(key) != now[key] for key in ("data", "classes", "sites", "model")):
        raise StoreError(
            f"the images or the model of {store.folder} are not those that this run began with",
            "restore the data, or start a new run with another --out",
        )


@dataclass
class _Recorder:
    """Writes each round into the run folder, then tells the reporters."""

    store: RunStore
    every: int
    reporters: Sequence[Reporter]

    def on_reply(self) -> None:
        """A client is done."""
        for reporter in self.reporters:
            reporter.reply()

    def on_baseline_round(self) -> None:
        """A round of a baseline is done."""
        for reporter in self.reporters:
            reporter.baseline_round()

    def on_round(self, line: loop.Line, checkpoint: Checkpoint, last: bool) -> None:
        """History first: a checkpoint vouches for the lines up to its round."""
        self.store.append_history(line)
        if last or checkpoint.round % self.every == 0:
            self.store.save_checkpoint(checkpoint)
        for reporter in self.reporters:
            reporter.round(line)


def _go(
    federation: Federation,
    speed: Speed,
    store: RunStore,
    command: Command,
    checkpoint: Checkpoint | None,
    reporters: Sequence[Reporter],
) -> dict[str, Any]:
    evaluator = Evaluator(federation)
    recorder = _Recorder(store, speed.checkpoint_every, reporters)
    done = checkpoint.round if checkpoint else 0

    def overall(sums: list[Metrics]) -> dict[str, float]:
        return dict(evaluator.figures(sums).overall)

    for reporter in reporters:
        reporter.begin(federation, done)
    engine = EmbeddedEngine(federation, speed, store.memory)
    try:
        trained = loop.run(federation, engine, overall, recorder, checkpoint)
    finally:
        engine.close()
    figures = evaluator.figures(trained.sums)
    summary = _summarise(federation, store, trained, figures)
    if command == "compare":
        for reporter in reporters:
            reporter.begin_baselines(
                len(baselines.jobs(federation)) * federation.program.rounds.rounds
            )
        found = baselines.compare(federation, speed, store, recorder.on_baseline_round)
        _add_comparison(federation, store, summary, figures, found)
    _write_evaluation(federation, store, evaluator, trained, figures)
    store.write_json("summary.json", summary)
    for reporter in reporters:
        reporter.finish(summary)
    return summary


def _summarise(
    federation: Federation, store: RunStore, trained: loop.Trained, figures: Figures
) -> dict[str, Any]:
    program, checkpoint = federation.program, trained.checkpoint
    path = store.save_model(trained.layout.state_dict(trained.vector))
    return {
        "name": program.name,
        **figures.overall,
        "rounds": checkpoint.round,
        "seconds": checkpoint.seconds,
        "bytes_up": checkpoint.bytes_up,
        "bytes_down": checkpoint.bytes_down,
        "fingerprint": program.fingerprint,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "worst_site": worst(figures.by_site),
        "by_site": figures.by_site,
    }


def _add_comparison(
    federation: Federation,
    store: RunStore,
    summary: dict[str, Any],
    figures: Figures,
    found: dict[str, Any],
) -> None:
    comparison = baselines.comparison(federation, found, figures)
    store.write_json("comparison.json", comparison)
    alone = {site: entry["accuracy"] for site, entry in comparison["alone"].items()}
    summary["federated"] = figures.overall["accuracy"]
    summary["pooled"] = comparison["pooled"]["accuracy"]
    measured = [accuracy for accuracy in alone.values() if accuracy is not None]
    summary["alone_mean"] = sum(measured) / len(measured) if measured else None
    summary["alone_by_site"] = alone


def _write_evaluation(
    federation: Federation,
    store: RunStore,
    evaluator: Evaluator,
    trained: loop.Trained,
    figures: Figures,
) -> None:
    confusion = figures.confusion
    vector = trained.checkpoint.vector
    store.write_json(
        "evaluation.json",
        {
            "classes": list(federation.dataset.classes),
            "confusion": None if confusion is None else confusion.tolist(),
            "site_test": evaluator.site_test,
            "personal": trained.layout.length(Kind.PERSONAL) > 0,
            "samples": answers(federation, vector, MemoryStore(store.memory)),
        },
    )
