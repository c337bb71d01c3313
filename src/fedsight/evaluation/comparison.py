"""The comparison with baselines: each site alone, and all images pooled, on the same budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any

from torch import Tensor

from fedsight.client.members import Members
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.coordinator.store import RunStore
from fedsight.core.errors import StoreError
from fedsight.core.files import refuse_links
from fedsight.core.types import Metrics
from fedsight.engines.pool import Pool
from fedsight.evaluation import shared
from fedsight.evaluation.baselines import POOLED, BaselineRound, TrainedBaseline, work
from fedsight.evaluation.delivery.base import ALONE, SHARED
from fedsight.evaluation.delivery.deliver import SharedModel
from fedsight.evaluation.evidence import Evidence, Witness, compared
from fedsight.evaluation.figures import Evaluator, Figures
from fedsight.evaluation.generalisation.exam import Exam, share
from fedsight.evaluation.shortcuts import agreement
from fedsight.program.budget import Budget, passes_by_site, planned, spent
from fedsight.program.federation import Federation
from fedsight.program.kept import keep
from fedsight.program.program import Speed
from fedsight.program.views import listed

# of what is known of a baseline, what others are made of
INNER = ("evidence", "delivered", "exam", "alike")
PARTIAL = (
    "comparison.partial.json"  # finished baselines; an interruption loses only those in progress
)


def jobs(federation: Federation) -> list[int]:
    """The baselines to train, the longest first."""
    sites = sorted(listed(federation.partition), key=federation.partition.size, reverse=True)
    return [POOLED, *sites]


def compare(
    federation: Federation,
    speed: Speed,
    store: RunStore,
    on_round: Callable[[], None],
    budget: Budget | None = None,
    trained: Tensor | None = None,
) -> dict[str, Any]:
    """Train every listed site alone, and all pooled, in parallel on worker processes.

    Each baseline runs the same round loop, for the rounds and passes of `budget` (default: those
    that were planned). `on_round` is called after each round of a baseline. With the model that
    the federation `trained` [size], each site chooses what it gets. Returns the figures as
    they appear in `comparison.json`, by job number as a string, with the evidence of sites alone.
    """
    refuse_links(store.folder, store.delivered.name)  # before anything is trained for it
    budget = budget or planned(federation)
    evaluator = Evaluator(federation)
    done = _finished(store)
    same = None if store.series is None else shared.key(federation, budget)
    if str(POOLED) not in done and (earlier := shared.kept(store.series, same)):
        done[str(POOLED)] = _figures(evaluator, earlier) | {"shared": True}
    for _ in range(len(done) * budget.rounds):
        on_round()
    left = [job for job in jobs(federation) if str(job) not in done]
    workers = min(speed.processes, len(left))
    keep(federation, speed)
    model = None if trained is None else SharedModel(trained, store.memory, store.delivered)
    pool = Pool(work, [(federation, speed, budget, model)] * workers)
    try:
        for worker in range(workers):
            pool.send(worker, left.pop(0), "starting")
        busy = set(range(workers))
        for worker, message in pool.messages(busy, "training a baseline"):
            if isinstance(message, BaselineRound):
                on_round()
                continue
            done[str(message.job)] = _figures(evaluator, message)
            if message.job == POOLED:
                shared.keep(store.series, same, message)
            store.write_json(PARTIAL, done)
            if left:
                pool.send(worker, left.pop(0), "training a baseline")
            else:
                busy.discard(worker)
    finally:
        pool.close()
    return done


def _finished(store: RunStore) -> dict[str, Any]:
    """The baselines that were trained before an interruption, by job; StoreError if the file does
    not hold what `compare` writes."""
    if not (store.folder / PARTIAL).exists():
        return {}
    done = store.read_json(PARTIAL)
    try:
        for entry in done.values():
            if "alike" in entry:
                agreement.checked(entry["alike"])
            for told in (entry, entry.get("delivered") or {}):
                _evidence(told)
                if "exam" in told:
                    Exam.of(told["exam"])
            if not all(isinstance(entry[key], int | float | None) for key in ("score", "passes")):
                raise ValueError("a figure is not a number")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        path = store.folder / PARTIAL
        cure = "remove the file: its baselines are trained again"
        raise StoreError(f"{path} is broken: {error!r:.200}", cure) from error
    return done


def comparison(
    federation: Federation,
    done: dict[str, Any],
    federated: Figures,
    history: Sequence[Mapping[str, Any]],
    evidence: Mapping[int, Evidence | None] | None = None,
) -> dict[str, Any]:
    """The content of `comparison.json`; `history` is that of the federation's training.

    `passes` is how often each arm has seen its training images, on average over them. `evidence`
    is what the federated figure of each site rests on; sites without it are not compared.
    """
    evaluator = Evaluator(federation)
    names = federation.partition.name
    sites = listed(federation.partition)
    passes = passes_by_site(federation, history)
    return {
        "alone": {
            names(site): {k: v for k, v in done[str(site)].items() if k not in INNER}
            for site in sites
        },
        "sites": {
            names(site): compared(evaluator, site, mine, _evidence(done[str(site)]))
            for site, mine in (evidence or {}).items()
        },
        "delivered": {
            names(site): delivered(evaluator, site, done[str(site)], federated, evidence or {})
            for site in sites
        },
        "pooled": {k: v for k, v in done[str(POOLED)].items() if k not in INNER},
        "federated": {
            **_single_model(federated),
            "passes": spent(federation, history).passes,
            "passes_by_site": {names(site): passes[names(site)] for site in sites},
        },
    }


def delivered(
    evaluator: Evaluator,
    site: int,
    done: Mapping[str, Any],
    federated: Figures,
    evidence: Mapping[int, Evidence | None],
) -> dict[str, Any]:
    """What `site` gets, its figure, and how that compares with the site's own model.

    Where no site has images to choose by, all get the federation's model.
    """
    known = done.get("delivered")
    if known is None:
        name = evaluator.federation.partition.name(site)
        score = federated.by_site.get(name, {}).get("score")
        found = compared(evaluator, site, evidence.get(site), _evidence(done))
        return {"kind": SHARED, "held_out": 0, "score": score, **found}
    found = compared(evaluator, site, _evidence(known), _evidence(done))
    return {**{k: v for k, v in known.items() if k not in INNER}, **found}


def gains(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says of who is better off: the number of `sites` compared and of
    `sites_better`, the names of those that are worse off beyond chance, and by site the gain in
    points and the kind of model that it got.

    A site that got its own model owes the federation nothing, and does not count as better off.
    """
    given, alone = comparison["delivered"], comparison["alone"]
    gain = {
        name: None
        if one["score"] is None or alone[name]["own_score"] is None
        else 100 * (one["score"] - alone[name]["own_score"])
        for name, one in given.items()
    }
    better = [name for name, points in gain.items() if (points or 0) > 0]
    return {
        "sites": sum(points is not None for points in gain.values()),
        "sites_better": sum(given[name]["kind"] != ALONE for name in better),
        "sites_worse": [name for name, one in given.items() if one["verdict"] == "worse"],
        "gain_by_site": gain,
        "delivered_by_site": {name: one["kind"] for name, one in given.items()},
    }


def federated_evidence(
    federation: Federation, speed: Speed, vector: Tensor, memory: MemoryStore
) -> dict[int, Evidence | None]:
    """What the federated figure of each listed site that has one rests on."""
    clients = Members(federation, lambda member: Client(member, speed))
    evaluator, found = Evaluator(federation), dict[int, Evidence | None]()
    personal = federation.program.differs(federation.network)
    witness = Witness(evaluator, clients.of(None))
    clients.of(None).load(vector, {})
    for site in listed(federation.partition):
        if personal:
            kept = memory.latest(federation.partition.name(site))
            client = clients.loaded(vector, site, kept)
            if client is None:  # it has never trained
                continue
            witness = Witness(evaluator, client)
        found[site] = witness.of(site)
    return found


def _evidence(done: Mapping[str, Any]) -> Evidence | None:
    return Evidence.of(done["evidence"]) if "evidence" in done else None


def _single_model(figures: Figures) -> dict[str, Any]:
    """The figures of one model for all sites: overall, and by site."""
    by_site = {site: figures.by_site[site]["score"] for site in figures.by_site}
    return {**figures.overall, "by_site": by_site}


def _figures(evaluator: Evaluator, trained: TrainedBaseline) -> dict[str, Any]:
    """What is known of a finished baseline, as plain values."""
    found = _scores(evaluator, trained) | {"passes": trained.passes}
    if trained.kept is not None:
        found["kept"] = trained.kept
    if trained.exam is not None:
        exam = trained.exam
        if trained.job == POOLED:  # of a site, its figure in its own mix is compared
            exam = replace(exam, tested=share(evaluator.figures(trained.sums)))
        found["exam"] = exam.plain()
    if trained.alike is not None:
        found["alike"] = list(trained.alike)
    if (given := trained.delivered) is not None:
        own = _own(evaluator, trained.job, given.sums)
        found["delivered"] = {**given.choice, "score": own.get("score")}
        if given.evidence is not None:
            found["delivered"]["evidence"] = given.evidence.plain()
        if given.exam is not None:
            found["delivered"]["exam"] = given.exam.plain()
    return found if trained.evidence is None else found | {"evidence": trained.evidence.plain()}


def _scores(evaluator: Evaluator, trained: TrainedBaseline) -> dict[str, Any]:
    if trained.job == POOLED:
        return _single_model(evaluator.figures(trained.sums))
    figures = evaluator.figures(trained.sums, only=trained.job)
    own = _own(evaluator, trained.job, trained.sums)
    overall = {key: None if isnan(value) else value for key, value in figures.overall.items()}
    return {**overall, "own_score": own.get("score")}


def _own(evaluator: Evaluator, site: int, sums: Sequence[Metrics]) -> Mapping[str, float]:
    """The figures of `site`; empty if it has no test image of its classes."""
    name = evaluator.federation.partition.name(site)
    return evaluator.figures(sums, only=site).by_site.get(name, {})
