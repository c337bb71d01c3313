"""Verification of unseen people: federated, pooled, every site alone, and raw pixels.

    python benchmarks/faces.py [--quick]

The job is the example `faces` on the ORL faces (`fedsight data get orl-faces`). Each split draws
the ten people who are verified, and who of the others is at which of the ten sites. The recipe was
chosen on splits 100 to 102, which are not among those shown. Raw pixels are compared by cosine as
they are, and with the training people's mean face taken off, which is the stronger of the two.
"""

from __future__ import annotations

import argparse
import time
import tomllib
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from common import RESULTS, machine, print_table, write_json

from fedsight.core.types import Metrics
from fedsight.engine.base import Federation
from fedsight.engine.embedded import EmbeddedEngine
from fedsight.run.config import check, parse
from fedsight.run.evaluate import Evaluator
from fedsight.run.federate import federate
from fedsight.run.loop import run
from fedsight.run.program import Speed
from fedsight.tasks import verification

KEYS = ("auc", "eer", "tar_at_0.01", "rank_1")


def job(split: int, rounds: int | None) -> dict[str, Any]:
    """The example's tables with another split of people."""
    text = files("fedsight.run").joinpath("examples", "faces.toml").read_text()
    tables = tomllib.loads(text)
    tables["seed"] = split
    tables["data"]["people_seed"] = split
    tables["rounds"] |= {"evaluate_every": 1000}
    if rounds is not None:
        tables["rounds"]["rounds"] = rounds
    return tables


def train(federation: Federation, speed: Speed) -> dict[str, float]:
    """The figures of a trained model."""
    evaluator = Evaluator(federation)
    engine = EmbeddedEngine(federation, speed)

    def overall(sums: list[Metrics]) -> Any:
        return evaluator.figures(sums).overall

    try:
        trained = run(federation, engine, overall)
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


def measure(split: int, rounds: int | None) -> dict[str, Any]:
    """Every way of one split."""
    program, speed = parse(job(split, rounds), Path.cwd())
    check(program, speed)
    federation = federate(program)
    began = time.perf_counter()
    federated = train(federation, speed)
    seconds = round(time.perf_counter() - began, 1)
    alone = {
        federation.partition.name(site): train(federation.alone(site), speed)
        for site in range(len(federation.partition))
    }
    return {
        "split": split,
        "federated": federated,
        "federated_seconds": seconds,
        "pooled": train(federation.all_pooled(), speed),
        "alone": alone,
        "alone_best": max(alone.values(), key=lambda one: one["auc"]),
        "pixels": pixels(federation, centred=False),
        "pixels_centred": pixels(federation, centred=True),
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
    ways = ("federated", "pooled", "alone_best", "pixels", "pixels_centred")
    rows = []
    for way in ways:
        values = {key: [one[way][key] for one in found] for key in KEYS}
        row = [way.replace("_", ", ")]
        for key in KEYS:
            deviation = stdev(values[key]) if len(found) > 1 else 0.0
            row.append(f"{mean(values[key]):.1%} +- {deviation:.1%}")
        rows.append([*row, " ".join(f"{value:.1%}" for value in values["auc"])])
    every = [one["auc"] for split in found for one in split["alone"].values()]
    rows.append(["alone, mean site", f"{mean(every):.1%}", "", "", "", ""])
    title = f"ORL faces: ten unseen people, splits {splits}; mean +- deviation"
    print_table(title, ["way", *KEYS, "AUC of each split"], rows)
    content = {
        "benchmark": "faces",
        "quick": options.quick,
        "machine": facts,
        "job": job(0, rounds),
        "results": found,
    }
    write_json(options.out, content)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
