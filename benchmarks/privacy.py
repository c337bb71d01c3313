"""What privacy costs in accuracy: one job, 1,000 clients, each mechanism at two epsilons.

    python benchmarks/privacy.py [--quick]

The main job's images, ten to a client. Every mechanism has the same clients, network and server;
its clip and learning rate were chosen on seed 100, which is not among those shown (that choice is
not paid for in epsilon, here as in most of the literature). The quick run has fewer rounds, one
seed and one epsilon.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import RESULTS, machine, print_table, write_json

from fedsight.coordinator.loop import run
from fedsight.coordinator.protection import Protection
from fedsight.coordinator.session import Session
from fedsight.engines.workers import WorkerEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.program.config import check, parse
from fedsight.program.federation import federate

CLIENTS, DELTA = 1000, 1e-5
JOB: dict[str, Any] = {
    "data": {"name": "fashion-mnist-12k"},
    "split": {"name": "iid", "sites": CLIENTS},
    "model": {"name": "small_cnn", "width": 8},
    "algorithm": {"name": "fedavgm", "server_lr": 1.0, "momentum": 0.9},
    "train": {"epochs": 2, "batch": 10, "lr": 0.1},
    "rounds": {"rounds": 30, "cohort": 400, "weighting": "uniform", "evaluate_every": 1000},
}
# Beside the job: the mechanism, and what suits it. A smaller step forgives more noise.
MECHANISMS: dict[str, dict[str, Any]] = {
    "none": {},
    "central": {"privacy": {"name": "central", "clip": 0.3}},
    "central, adaptive": {"privacy": {"name": "central", "clip": 0.1, "quantile": 0.5}},
    "matrix": {"privacy": {"name": "matrix", "clip": 0.3, "bands": 2}},
    "distributed": {
        "privacy": {"name": "distributed", "clip": 0.3},
        "secure": {"name": "secagg"},
    },
    "local": {"privacy": {"name": "local", "clip": 0.3}},
    "example": {"privacy": {"name": "example", "clip": 1.0}},
}


def job(mechanism: str, epsilon: float | None, seed: int, rounds: int | None) -> dict[str, Any]:
    """The tables of one run."""
    tables: dict[str, Any] = {"seed": seed, **{key: dict(table) for key, table in JOB.items()}}
    for section, values in MECHANISMS[mechanism].items():
        kept = tables.get(section, {})
        keeps = "name" not in values or values["name"] == kept.get("name")
        tables[section] = {**kept, **values} if keeps else dict(values)
    if epsilon is not None:
        tables["privacy"] |= {"epsilon": epsilon, "delta": DELTA}
    if rounds is not None:
        tables["rounds"]["rounds"] = rounds
    return tables


def train(tables: dict[str, Any]) -> dict[str, Any]:
    """One run: accuracy, what was spent, and how long it took."""
    program, speed = parse(tables, Path.cwd())
    check(program, speed)
    began = time.perf_counter()
    federation = federate(program)
    evaluator = Evaluator(federation)
    engine = WorkerEngine(federation, speed)
    try:
        trained = run(Session(federation), engine, lambda sums: evaluator.figures(sums).overall)
    finally:
        engine.close()
    protection = Protection(federation)
    facts = protection.facts() or {}
    return {
        "accuracy": round(evaluator.figures(trained.sums).overall["accuracy"], 4),
        "epsilon": protection.epsilon(trained.checkpoint.round),
        "noise_multiplier": facts.get("noise_multiplier"),
        "rounds": trained.checkpoint.round,
        "parameters": len(trained.travelling),
        "seconds": round(time.perf_counter() - began, 1),
    }


def kept(path: Path, rounds: int | None) -> list[dict[str, Any]]:
    """What an earlier call wrote about the very same job; `--only` then replaces a part of it."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    same = content["job"] == JOB and content["rounds"] == (rounds or JOB["rounds"]["rounds"])
    return content["results"] if same else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds, one seed, epsilon 8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[3.0, 8.0])
    parser.add_argument("--only", nargs="+", choices=list(MECHANISMS), default=list(MECHANISMS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = options.out or RESULTS / ("privacy-quick.json" if options.quick else "privacy.json")
    seeds: Sequence[int] = options.seeds[:1] if options.quick else options.seeds
    epsilons: Sequence[float] = options.epsilons[-1:] if options.quick else options.epsilons
    rounds = options.rounds or (3 if options.quick else None)
    found = {(line["mechanism"], line["target"]): line for line in kept(path, rounds)}
    for mechanism in options.only:
        for epsilon in [None] if mechanism == "none" else epsilons:
            runs = []
            for seed in seeds:
                runs.append({"seed": seed, **train(job(mechanism, epsilon, seed, rounds))})
                print(f"{mechanism}, epsilon {epsilon}, seed {seed}: {runs[-1]}", flush=True)
            line = {"mechanism": mechanism, "target": epsilon, "machine": machine(), "runs": runs}
            found[mechanism, epsilon] = line
            content = {
                "benchmark": "privacy",
                "rounds": rounds or JOB["rounds"]["rounds"],
                "clients": CLIENTS,
                "delta": DELTA,
                "job": JOB,
                "mechanisms": MECHANISMS,
                "units": "example protects single images, the others clients: not the same promise",
                "results": list(found.values()),
            }
            write_json(path, content)
    rows = [
        [
            line["mechanism"],
            "" if line["target"] is None else f"{line['target']:g}",
            f"{mean(one['accuracy'] for one in line['runs']):.1%}",
            " ".join(f"{one['accuracy']:.1%}" for one in line["runs"]),
        ]
        for line in found.values()
    ]
    title = f"{CLIENTS:,} clients of ten images, delta {DELTA:g}; accuracy, one figure a seed"
    print_table(title, ["mechanism", "epsilon", "mean", "each seed"], rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
