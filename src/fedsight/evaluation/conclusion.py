"""The end of a run: writes the model, the baselines, the evaluation and the summary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsight.client.memory import MemoryStore
from fedsight.coordinator import loop
from fedsight.coordinator.callbacks import (
    BaselineRoundEnded,
    BaselinesBegan,
    Callback,
    RunEnded,
    notify,
)
from fedsight.coordinator.choice import Choice
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError
from fedsight.engines.remote.engine import RemoteEngine
from fedsight.evaluation import comparison as baselines
from fedsight.evaluation import overall
from fedsight.evaluation.attempts import (
    CURVES,
    GENERALISATION,
    INTERVALS,
    SAMPLES,
    SHORTCUTS,
    SITES,
    TABLES,
    TRUST,
    Attempts,
)
from fedsight.evaluation.evidence import Evidence
from fedsight.evaluation.figures import Evaluator, Figures
from fedsight.evaluation.generalisation.exam import unexamined
from fedsight.evaluation.generalisation.told import itself, left_out, told
from fedsight.evaluation.homogeneity import Spread, spread
from fedsight.evaluation.overall import Final, Interval, Intervals
from fedsight.evaluation.protected_bytes import shorter_codec
from fedsight.evaluation.samples import answers
from fedsight.evaluation.shortcuts import measure
from fedsight.evaluation.trust import noised_cover
from fedsight.evaluation.trust.covering import controlled
from fedsight.evaluation.trust.covering_of_noise import controlled_noised
from fedsight.evaluation.trust.covering_remote import controlled_remote
from fedsight.evaluation.trust.fit import FitFile
from fedsight.evaluation.trust.masked import controlled_masked, trusted_masked
from fedsight.evaluation.trust.measure import Trusted, trusted
from fedsight.evaluation.trust.noised import BOUNDS, SHAPES
from fedsight.evaluation.trust.of_noise import trusted_noised
from fedsight.evaluation.trust.remote import trusted_remote
from fedsight.evaluation.trust.saved import keep
from fedsight.program.budget import spent
from fedsight.program.program import Speed
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.presentation import Curve, Table

Command = Literal["run", "compare"]


@dataclass(frozen=True)
class Conclusion:
    """What concluding a run needs: session, speed, folder, command, callbacks.

    Without `pictures` the evaluation shows no images: a remote coordinator has none. `withheld`
    says by site why it has released no figures; the sites `noised` have added noise to theirs.
    `before` see a round before it is recorded, and may end the run without it. `sums` asks sites
    how far the final model's answers can be trusted (None: none are at other machines).
    """

    session: Session
    speed: Speed
    store: RunStore
    command: Command
    callbacks: Sequence[Callback]
    pictures: bool = True
    withheld: Mapping[str, str] = field(default_factory=dict)
    noised: Sequence[str] = ()
    before: Sequence[Callback] = ()
    sums: RemoteEngine | None = None


def conclude(run: Conclusion, trained: loop.Trained) -> dict[str, Any]:
    """Train the baselines if the command asks for them, then write all result files.

    Returns the summary. It is written last, because its presence marks the run as finished.
    """
    federation, store = run.session.federation, run.store
    # First of all: whatever comes of the figures, this is what the training was for.
    model = store.save_model(run.session.layout.state_dict(trained.vector))
    evaluator = Evaluator(federation)
    figures = evaluator.figures(trained.sums, final=True)
    summary = _summarise(run, trained, figures, model)
    if trained.unmeasured:
        summary["not_measured"] = dict(trained.unmeasured)
    summary["privacy"] = run.session.protection.summary(trained.checkpoint.round)
    summary["shorter_codec"] = shorter_codec(federation)
    evidence, found = _evidence(run, trained, evaluator), dict[str, Any]()
    if run.command == "compare":
        budget = spent(federation, store.history())
        rounds = len(baselines.jobs(federation)) * budget.rounds
        notify(run.callbacks, BaselinesBegan(rounds))

        def ended() -> None:
            notify(run.callbacks, BaselineRoundEnded())

        found = baselines.compare(federation, run.speed, store, ended, budget, trained.vector)
        _add_comparison(run, summary, figures, found, evidence)
    attempts = Attempts(figures.failed)
    sites = attempts.of(SITES, lambda: spread(evaluator, figures, evidence), Spread())
    if sites.worst is not None:
        summary["worst_site"] = {"name": sites.worst, "score": sites.sites[sites.worst].score}
    memory = MemoryStore(store.memory)
    final = Final(federation, run.speed, trained.travelling, memory)
    sure = attempts.of(
        INTERVALS,
        lambda: overall.intervals(final, evaluator, figures, run.pictures),
        Intervals({}, overall.FAILED),
    )
    summary["score_interval"] = list(sure.known["score"]) if "score" in sure.known else None
    left_out = Trusted.left_out(overall.FAILED)
    trust = attempts.of(TRUST, lambda: _trusted(run, final, trained), left_out)
    keep(store, trust, model)
    summary |= trust.summary
    summary |= _generalisation(run, (final, evaluator, figures), found, attempts)
    summary |= _shortcuts(run, final, found, attempts)
    _write_evaluation(run, evaluator, trained, figures, (sites, sure, attempts))
    store.write_json("summary.json", summary)
    notify(run.callbacks, RunEnded(summary))
    return summary


def _trusted(run: Conclusion, final: Final, trained: loop.Trained) -> Trusted:
    """How far the answers can be trusted, by the images here or by the sums of the sites."""
    covering = final.federation.program.task.covering
    if covering is not None:
        return _controlled(run, final, trained, covering)
    if run.sums is None and run.pictures and final.federation.program.secure.masks:
        return trusted_masked(final)
    if run.sums is None:
        return trusted(final, run.pictures)
    model, federation = (trained.travelling, trained.checkpoint.round), final.federation
    groups = run.sums.site_sums.groups
    if federation.program.privacy.protects and not federation.program.secure.masks:
        ask = partial(run.sums.noised_sums, model, BOUNDS, SHAPES)
        return trusted_noised(federation, ask, groups)
    file = FitFile(run.store, model)
    told = trusted_remote(federation, partial(run.sums.add_up, model), file, groups)
    return told.doubting(run.sums.site_sums.doubts)


def _controlled(
    run: Conclusion, final: Final, trained: loop.Trained, covering: Covering
) -> Trusted:
    """How large the answers of a task have to be that says what these may miss."""
    if run.sums is None and run.pictures and final.federation.program.secure.masks:
        return controlled_masked(final, covering)
    if run.sums is None:
        return controlled(final, covering, run.pictures)
    model, program = (trained.travelling, trained.checkpoint.round), final.federation.program
    groups = run.sums.site_sums.groups
    if program.privacy.protects and not program.secure.masks:
        shapes = noised_cover.BOUNDS, noised_cover.SHAPES
        noised = partial(run.sums.noised_sums, model, *shapes)
        return controlled_noised(final.federation, covering, noised, groups)
    ask = partial(run.sums.add_up, model)
    told = controlled_remote(final.federation, covering, ask, groups)
    return told.doubting(run.sums.site_sums.doubts)


def _generalisation(
    run: Conclusion,
    at: tuple[Final, Evaluator, Figures],
    found: Mapping[str, Any],
    attempts: Attempts,
) -> dict[str, Any]:
    """What the summary says of over-fitting and robustness; `found` are the baselines, if any."""
    if reason := unexamined(run.session.federation, run.pictures):
        return left_out(reason) | itself(at[2].overall)
    otherwise = left_out(overall.FAILED)
    return attempts.of(GENERALISATION, lambda: told(*at, found), otherwise)


def _shortcuts(
    run: Conclusion, final: Final, found: Mapping[str, Any], attempts: Attempts
) -> dict[str, Any]:
    """What the summary says of shortcuts; `found` are the baselines, if any."""
    if reason := measure.why_not(run.session.federation, run.pictures):
        return measure.left_out(reason)
    otherwise = measure.left_out(overall.FAILED)
    return attempts.of(SHORTCUTS, lambda: measure.shortcuts(final, found), otherwise)


def _evidence(
    run: Conclusion, trained: loop.Trained, evaluator: Evaluator
) -> Mapping[int, Evidence | None]:
    """What the sites' figures rest on, where baselines are compared with them, or where that alone
    says how sure they are: figures other than shares, of sites with test images of their own."""
    federation = run.session.federation
    own = evaluator.site_test == "own images" and not federation.program.task.share
    if run.command != "compare" and not (own and run.pictures):
        return {}
    vector, memory = trained.travelling, MemoryStore(run.store.memory)
    return baselines.federated_evidence(federation, run.speed, vector, memory)


def require_score(summary: Mapping[str, Any], folder: str) -> None:
    """DataError for a finished run whose final score is not a number; its files are in `folder`."""
    if summary.get("unmeasured"):
        raise DataError(
            f"the run is finished, but its final figure ({summary['headline']}) is not a number: "
            "the test part holds nothing that it can be measured on",
            "label test images of the classes that are trained, or test on others. The model, the "
            f"history and the report are complete in {folder}",
        )


def _summarise(
    run: Conclusion, trained: loop.Trained, figures: Figures, model: Path
) -> dict[str, Any]:
    program, checkpoint = run.session.program, trained.checkpoint
    choice, planned = Choice.of(program), run.session.protection.rounds
    return {
        "name": program.name,
        "headline": program.task.headline_title,
        "score": None,  # unless something was measured
        "loss": None,
        **figures.overall,
        **({"unmeasured": True} if isnan(figures.overall.get("score", 0.0)) else {}),
        **({} if checkpoint.average is None else {"model": loop.AVERAGE}),
        "rounds": checkpoint.round,
        "seconds": checkpoint.seconds,
        "bytes_up": checkpoint.bytes_up,
        "bytes_down": checkpoint.bytes_down,
        **(
            {}
            if checkpoint.virtual_seconds is None
            else {"virtual_seconds": checkpoint.virtual_seconds}
        ),
        "fingerprint": program.fingerprint,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "worst_site": None,  # unless sites differ beyond chance
        "by_site": figures.by_site,
        **_errors(figures),
        **(
            {}
            if choice is None
            else {"kept": choice.told(checkpoint.best, checkpoint.round, planned)}
        ),
    }


def _errors(figures: Figures) -> dict[str, Any]:
    """The standard errors of the scores, if they have noise."""
    if not figures.errors and not figures.site_errors:
        return {}
    sites = {name: one.get("score") for name, one in figures.site_errors.items()}
    return {"score_error": figures.errors.get("score"), "site_errors": sites}


def _add_comparison(
    run: Conclusion,
    summary: dict[str, Any],
    figures: Figures,
    found: dict[str, Any],
    evidence: Mapping[int, Evidence | None],
) -> None:
    federation, history = run.session.federation, run.store.history()
    comparison = baselines.comparison(federation, found, figures, history, evidence)
    run.store.write_json("comparison.json", comparison)
    alone = {site: entry["score"] for site, entry in comparison["alone"].items()}
    summary["federated"] = figures.overall["score"]
    summary["pooled"] = comparison["pooled"]["score"]
    measured = [score for score in alone.values() if score is not None]
    summary["alone_mean"] = sum(measured) / len(measured) if measured else None
    summary["alone_by_site"] = alone
    summary |= baselines.gains(comparison)


def _write_evaluation(
    run: Conclusion,
    evaluator: Evaluator,
    trained: loop.Trained,
    figures: Figures,
    beside: tuple[Spread, Intervals, Attempts],
) -> None:
    sites, sure, attempts = beside
    federation = run.session.federation
    confusion, classes = figures.confusion, federation.dataset.classes
    task, measured = federation.program.task, bool(figures.sums)
    samples: list[dict[str, Any]] = []
    if run.pictures:
        memory, confused = MemoryStore(run.store.memory), _confusions(confusion, classes)
        samples = attempts.of(
            SAMPLES, lambda: answers(federation, trained.travelling, memory, confused), samples
        )
    curves: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []
    if measured:
        curves += attempts.of(CURVES, lambda: _plain(task.curves(figures.sums, classes)), [])
        tables += attempts.of(TABLES, lambda: _plain(task.tables(figures.sums, classes)), [])
        by_site = figures.site_sums
        tables += attempts.of(TABLES, lambda: _plain(task.site_tables(by_site, classes)), [])
    run.store.write_json(
        "evaluation.json",
        {
            "classes": list(classes),
            "confusion": None if confusion is None else confusion.tolist(),
            "site_test": evaluator.site_test,
            "personal": federation.program.differs(federation.network),
            **sites.plain(),
            "figures": _overall(figures, sure.known),
            "no_interval": sure.reason,
            "samples": samples,
            "curves": curves,
            "tables": tables,
            "failed": attempts.failed,
            "withheld": dict(run.withheld),
            "not_measured": dict(trained.unmeasured),
            "noised": list(run.noised),
        },
    )


def _plain(shown: Sequence[Curve] | Sequence[Table]) -> list[dict[str, Any]]:
    """Curves or tables as values for JSON."""
    return [asdict(one) for one in shown]


def _overall(figures: Figures, known: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Each overall figure with its 95 % interval, null where that is not known."""
    found = {}
    for name, value in figures.overall.items():
        if name == "score":  # the headline, which has a name of its own
            continue
        low, high = known.get(name, (None, None))
        found[name] = {"value": value, "low": low, "high": high}
    return found


def _confusions(
    matrix: npt.NDArray[np.int64] | None, classes: Sequence[str]
) -> dict[tuple[str, str], int]:
    """How often each class was taken for each other one."""
    if matrix is None:
        return {}
    return {
        (classes[i], classes[j]): int(times)
        for (i, j), times in np.ndenumerate(matrix)
        if i != j and times > 0
    }
