"""Detection: what federation bought on composed scenes and on tree crowns, and partial labels.

    python benchmarks/detect.py [--quick] [scenes] [trees] [partial]

The jobs are the examples `scenes` and `trees`. Scenes are composed anew for each seed; trees are
tested on each of the four sides of their tiles in turn. Every site alone and all images pooled
train for as many rounds and epochs as the federation, and all are tested on the same images.
`partial`: three classes, three sites that each label one of them; the same with all labels; and
the naive way, in which an unlabelled object is background. The quick run has one repetition.
Trees need: fedsight data get deepforest-trees; fedsight data get mobilenet-weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

from common import RESULTS, machine, print_table, spread, write_json

from fedsight.run.config import parse
from fedsight.run.program import Speed
from fedsight.run.session import start
from fedsight.run.store import RunStore

ROUNDS = 20  # of the partial labels
CLASSES = ["Trouser", "Sandal", "Bag"]
SIDES = ("left", "right", "top", "bottom")


def example(name: str) -> dict[str, Any]:
    """The tables of an example."""
    text = files("fedsight.run").joinpath("examples", f"{name}.toml").read_text()
    return tomllib.loads(text)


def repetitions(name: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The runs of a job, each with what tells it from the others."""
    if name == "trees":
        for side in SIDES[:count]:
            tables = example("trees")
            tables["data"]["test_side"] = side
            yield side, tables
        return
    for seed in range(min(3, count)):
        tables = example("scenes")
        tables["seed"] = tables["data"]["seed"] = seed
        yield f"seed {seed}", tables


def compared(tables: dict[str, Any], speed: Speed) -> dict[str, Any]:
    """Federated, pooled and alone: mAP over IoU 0.50 to 0.95 and at 0.50."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        program, _ = parse(tables, base=None)
        run = Path(folder) / "run"
        start(program, speed, RunStore(run), "compare", [])
        found = json.loads((run / "comparison.json").read_text())

    def figures(entry: dict[str, Any]) -> dict[str, float]:
        return {key: entry[key] for key in ("map", "map_50")}

    return {
        "federated": figures(found["federated"]),
        "pooled": figures(found["pooled"]),
        "alone": {site: figures(entry) for site, entry in found["alone"].items()},
        "by_site": found["federated"]["by_site"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def partial(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Three sites that label all classes, one each, and one each taught naively; and all classes of
    a third of the scenes, which is as many boxes as one class of all."""
    scenes = 300 if quick else 900
    for name, count, each, unlabelled in (
        ("all labelled", scenes, None, "ignore"),
        ("one class each", scenes, 1, "ignore"),
        ("one class each, naive", scenes, 1, "background"),
        ("all labelled, a third of the scenes", scenes // 3, None, "ignore"),
    ):
        tables = example("scenes")
        data = {"sites": 3, "train": count, "classes": CLASSES, "alpha": 100.0}
        tables["data"] |= data if each is None else {**data, "labels_each": each}
        tables["task"]["unlabelled"] = unlabelled
        # Few local steps: what one class asks of the network pulls it away from the others.
        tables["train"] |= {"epochs": 1, "batch": 16, "lr": 0.04}
        # Equally many steps for a third of the scenes, or fewer labels would mean less training.
        tables["rounds"] |= {"rounds": ROUNDS * scenes // count, "evaluate_every": 100}
        yield name, tables


def trained(tables: dict[str, Any], speed: Speed) -> dict[str, float]:
    """The federated model's figures."""
    with tempfile.TemporaryDirectory() as folder:
        program, _ = parse(tables, base=None)
        summary = start(program, speed, RunStore(Path(folder) / "run"), "run", [])
    return {key: summary[key] for key in ("map", "map_50", "f1_50")}


def table(name: str, runs: dict[str, dict[str, Any]]) -> None:
    """One line for each way of training."""
    rows = []
    sites = sorted({site for run in runs.values() for site in run["alone"]})
    ways: list[tuple[str, Any]] = [("federated", lambda run: run["federated"])]
    ways.append(("pooled", lambda run: run["pooled"]))
    ways += [(f"{site} alone", lambda run, site=site: run["alone"][site]) for site in sites]
    for title, choose in ways:
        found = [choose(run) for run in runs.values()]
        rows.append(
            [title]
            + [f"{mean(f[key] for f in found):.3f}" for key in ("map", "map_50")]
            + [spread([f["map"] for f in found], 3)]
        )
    print_table(
        f"{name}: {len(runs)} repetition(s)",
        ["model", "mean mAP", "mean AP at 0.50", "mAP, median (range)"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("jobs", nargs="*", default=["scenes", "trees", "partial"])
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--repetitions", type=int, default=4, help="at most; scenes have 3")
    parser.add_argument("--workers", type=int, help="processes; else one for each core")
    options = parser.parse_args()
    speed = Speed(workers=options.workers)
    path = RESULTS / ("detect-quick.json" if options.quick else "detect.json")
    results = json.loads(path.read_text()) if path.exists() else {}

    def save(job: str, runs: dict[str, Any]) -> None:
        results[job] = {"machine": machine(), "runs": runs}  # of what is done so far
        write_json(path, results)

    for job in options.jobs:
        runs: dict[str, Any] = {}
        if job == "partial":
            for name, tables in partial(options.quick):
                runs[name] = trained(tables, speed)
                print(name, runs[name], flush=True)
                save(job, runs)
            rows = [[n, *(f"{value:.3f}" for value in f.values())] for n, f in runs.items()]
            columns = ["labels", "mAP", "AP at 0.50", "F1 at 0.50, score 0.3"]
            print_table("Partial labels", columns, rows)
        else:
            for name, tables in repetitions(job, 1 if options.quick else options.repetitions):
                runs[name] = compared(tables, speed)
                print(job, name, runs[name], flush=True)
                save(job, runs)
            table(job, runs)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
