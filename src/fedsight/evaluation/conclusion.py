"""What a finished run leaves in its folder: model, baselines, evaluation, summary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from fedsight.client.memory import MemoryStore
from fedsight.coordinator import loop
from fedsight.coordinator.callbacks import Callback
from fedsight.coordinator.protection import Protection
from fedsight.coordinator.store import RunStore
from fedsight.evaluation import comparison as baselines
from fedsight.evaluation.figures import Evaluator, Figures, worst
from fedsight.evaluation.samples import answers
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Command = Literal["run", "compare"]


def conclude(
    federation: Federation,
    speed: Speed,
    store: RunStore,
    command: Command,
    trained: loop.Trained,
    reporters: Sequence[Callback],
    pictures: bool,
    secret: int | None = None,
) -> dict[str, Any]:
    """Train the baselines if the command wants them, then write all that tells of the result.

    Without `pictures` the evaluation shows no images. Returns the summary, which is written last:
    it says that the run is finished.
    """
    evaluator = Evaluator(federation)
    figures = evaluator.figures(trained.sums)
    summary = _summarise(federation, store, trained, figures)
    summary["privacy"] = Protection(federation, secret).summary(trained.checkpoint.round)
    if command == "compare":
        for reporter in reporters:
            reporter.begin_baselines(
                len(baselines.jobs(federation)) * federation.program.rounds.rounds
            )

        def on_round() -> None:
            for reporter in reporters:
                reporter.baseline_round()

        found = baselines.compare(federation, speed, store, on_round)
        _add_comparison(federation, store, summary, figures, found)
    _write_evaluation(federation, store, evaluator, trained, figures, pictures)
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
        "headline": program.task.headline_title,
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
    alone = {site: entry["score"] for site, entry in comparison["alone"].items()}
    summary["federated"] = figures.overall["score"]
    summary["pooled"] = comparison["pooled"]["score"]
    measured = [score for score in alone.values() if score is not None]
    summary["alone_mean"] = sum(measured) / len(measured) if measured else None
    summary["alone_by_site"] = alone


def _write_evaluation(
    federation: Federation,
    store: RunStore,
    evaluator: Evaluator,
    trained: loop.Trained,
    figures: Figures,
    pictures: bool,
) -> None:
    confusion, task, classes = (
        figures.confusion,
        federation.program.task,
        federation.dataset.classes,
    )
    samples: list[dict[str, Any]] = []
    if pictures:
        samples = answers(federation, trained.checkpoint.vector, MemoryStore(store.memory))
    store.write_json(
        "evaluation.json",
        {
            "classes": list(classes),
            "confusion": None if confusion is None else confusion.tolist(),
            "site_test": evaluator.site_test,
            "personal": federation.program.differs(federation.network()),
            "samples": samples,
            "curves": [asdict(curve) for curve in task.curves(figures.sums, classes)],
            "tables": [
                asdict(table)
                for table in (
                    *task.tables(figures.sums, classes),
                    *task.site_tables(figures.site_sums, classes),
                )
            ],
        },
    )
