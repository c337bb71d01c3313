"""Verification of unseen people: federated, pooled, every site alone, and raw pixels.

    python benchmarks/faces.py [--quick]

The job is the example `faces` on the ORL faces (`fedsight data get orl-faces`). Each split draws
the ten people who are verified, and who of the others is at which of the ten sites. The recipe was
chosen on splits 100 to 102, which are not among those shown. Raw pixels are compared by cosine as
they are, and with the training people's mean face taken off, which is the stronger of the two.
`statistics` is the federated model whose statistics (the mean and covariance of what fixed filters
find) are those of all sites while nothing is learnt by gradient. `alone_best` is the best of ten
sites in each split, chosen by its AUC on the test people. Results are written after every split.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from common import RESULTS, example, machine, print_table, write_json

from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.core.types import Metrics
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.program.config import check, parse
from fedsight.program.federation import Federation, federate
from fedsight.tasks.faces import verification

WAYS = ("federated", "pooled", "alone_best", "statistics", "pixels", "pixels_centred")
KEYS = ("auc", "eer", "tar_at_0.01", "rank_1")


def job(split: int, rounds: int | None, learn: bool = True) -> dict[str, Any]:
    """The example's tables with another split of people; without `learn`, no step of any size."""
    tables = example("faces")
    tables["seed"] = split
    tables["data"]["people_seed"] = split
    tables["rounds"] |= {"evaluate_every": 1000}
    if rounds is not None:
        tables["rounds"]["rounds"] = rounds
    if not learn:
        tables["train"]["lr"] = 1e-12
    return tables


def train(federation: Federation) -> dict[str, float]:
    """The figures of a trained model."""
    evaluator = Evaluator(federation)
    engine = InProcessEngine(federation)  # the same bits as with workers, and no start of processes

    def overall(sums: list[Metrics]) -> Any:
        return evaluator.figures(sums).overall

    try:
        trained = run(Session(federation), engine, overall)
    finally:
        engine.close()
    figures = federation.program.task.summary(trained.sums[0])
    return {key: round(figures[key], 4) for key in KEYS}


def pixels(federation: Federation, centred: bool) -> dict[str, float]:
    """The figures of the pixels themselves."""
    parts = federation.dataset.train, federation.dataset.test
    faces, tested = (part.images.read(torch.arange(len(part))).flatten(1) for part in parts)
    vectors = torch.nn.functional.normalize(tested - faces.mean(0) * float(centred), dim=1)
    people = torch.from_numpy(federation.dataset.test.labels)
    sums = {**verification.verify(vectors, people), **verification.identify(vectors, people)}
    figures = verification.figures(sums, (0.01,))
    return {key: round(figures[key], 4) for key in KEYS}


def federation_of(tables: dict[str, Any]) -> Federation:
    """What a run of these tables trains on."""
    program, speed = parse(tables, Path.cwd())
    check(program, speed)
    return federate(program)


def measure(split: int, rounds: int | None) -> dict[str, Any]:
    """Every way of one split."""
    federation = federation_of(job(split, rounds))
    began = time.perf_counter()
    federated = train(federation)
    seconds = round(time.perf_counter() - began, 1)
    alone = {
        federation.partition.name(site): train(federation.alone(site))
        for site in range(len(federation.partition))
    }
    return {
        "split": split,
        "federated": federated,
        "federated_seconds": seconds,
        "pooled": train(federation.all_pooled()),
        "statistics": train(federation_of(job(split, rounds, learn=False))),
        "alone": alone,
        "alone_best": max(alone.values(), key=lambda one: one["auc"]),
        "pixels": pixels(federation, centred=False),
        "pixels_centred": pixels(federation, centred=True),
    }


def summary(found: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over splits, by way and figure."""
    return {
        way: {
            key: {
                "mean": round(mean(one[way][key] for one in found), 4),
                "deviation": round(
                    stdev(one[way][key] for one in found) if len(found) > 1 else 0.0, 4
                ),
            }
            for key in KEYS
        }
        for way in WAYS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split, two rounds")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "faces.json")
    options = parser.parse_args()
    splits = options.splits[:1] if options.quick else options.splits
    rounds = options.rounds or (2 if options.quick else None)
    facts = machine()
    found = []
    for split in splits:
        found.append(measure(split, rounds))
        print(f"split {split}: {found[-1]}", flush=True)
        content = {
            "benchmark": "faces",
            "quick": options.quick,
            "machine": facts,
            "job": job(splits[0], rounds),
            "summary": summary(found),
            "results": found,
        }
        write_json(options.out, content)
    rows = []
    for way, values in summary(found).items():
        shown = [f"{one['mean']:.1%} +- {one['deviation']:.1%}" for one in values.values()]
        each = " ".join(f"{one[way]['auc']:.1%}" for one in found)
        rows.append([way.replace("_", ", "), *shown, each])
    every = [one["auc"] for split in found for one in split["alone"].values()]
    rows.append(["alone, mean site", f"{mean(every):.1%}", "", "", "", ""])
    title = f"ORL faces: ten unseen people, splits {splits}; mean +- deviation"
    print_table(title, ["way", *KEYS, "AUC of each split"], rows)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
