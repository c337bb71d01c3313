"""Fine-tuning among sites beside all images in one place: accuracy, and the ridge head of each.

    fedsight data get efficientnet-lite0
    python benchmarks/finetune.py [--quick]

Ten sites share the built-in Fashion-MNIST images, enlarged to 96 pixels: Dirichlet 0.3, two
classes at each site, and Dirichlet 0.1 (the example `finetune`). They begin with the closed-form
head of EfficientNet-Lite0's features (`[start]`), fine-tune the last block with the example's
recipe, and solve for the head again (`[finish]`). `pooled` trains on all images in one place with
as many passes, from the same start to the same finish; `scratch` is the built-in example `fashion`
among the same sites. Accuracy is that of the final model on the 2,000 test images. The recipe was
chosen with Dirichlet 0.1 and seed 0, so that split flatters it. Results are written after every
run; those of other runs, in files named with `--add`, are shown beside them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, example, machine, print_table, write_json

import fedsight

SPLITS: dict[str, dict[str, Any]] = {
    "dirichlet-0.3": {"name": "dirichlet", "sites": 10, "alpha": 0.3},
    "two-classes": {"name": "labels", "sites": 10, "labels": 2},
    "dirichlet-0.1": {"name": "dirichlet", "sites": 10, "alpha": 0.1},
    "pooled": {"name": "iid", "sites": 1},
}
GOAL = {"dirichlet-0.3": -1.5, "two-classes": -3.0}  # points to pooled fine-tuning
WAYS = ("finetune", "pooled", "scratch")
PREFIX = "blocks.6"  # what is before it is frozen, and runs once for each image


def job(way: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """The config of one run."""
    table = example("fashion" if way == "scratch" else "finetune")
    table |= {"name": f"{way}-{split}", "seed": seed, "split": SPLITS[split]}
    if way != "scratch":
        table["speed"] = {"cache_at": PREFIX}
    table["rounds"] = {"rounds": 1 if quick else table["rounds"]["rounds"]}
    if quick and way != "scratch":
        table["data"]["size"] = 32
    return table


def measure(way: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run: its accuracy, that of its start and before its finish, what was sent, and time."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fedsight-finetune-") as folder:
        run = fedsight.run(job(way, split, seed, quick), out=Path(folder) / way)
        summary, history = run.summary, run.history
    lines = [line for line in history if "finish" not in line]
    return {
        "way": way,
        "split": split,
        "seed": seed,
        "accuracy": summary["accuracy"],
        "start": lines[0]["accuracy"] if lines[0]["round"] == 0 else None,
        "trained": lines[-1]["accuracy"],
        "bytes_up": summary["bytes_up"],
        "seconds": round(time.perf_counter() - began, 1),
        "rounds": [
            {key: line[key] for key in ("round", "accuracy", "bytes_up", "bytes_down", "seconds")}
            for line in history
        ],
    }


def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By split and seed: the points of the federated run to its start and to the pooled one."""
    known = {(one["way"], one["split"], one["seed"]): one for one in found}
    rows = []
    for (way, split, seed), one in known.items():
        if way != "finetune":
            continue
        pooled = known.get(("pooled", "pooled", seed))
        points = None
        if pooled is not None:
            points = round(100 * (one["accuracy"] - pooled["accuracy"]), 2)
        goal = GOAL.get(split)
        rows.append(
            {
                "split": split,
                "seed": seed,
                "to_start": round(100 * (one["accuracy"] - one["start"]), 2),
                "to_pooled": points,
                "reached": None if points is None or goal is None else points >= goal,
            }
        )
    return rows


def show(found: list[dict[str, Any]]) -> None:
    """The table."""
    rows = [
        [
            one["way"],
            one["split"],
            "" if one["start"] is None else f"{one['start']:.2%}",
            f"{one['trained']:.2%}",
            f"{one['accuracy']:.2%}",
            f"{one['bytes_up'] / 1e6:.1f} MB",
            f"{one['seconds']:.0f} s",
        ]
        for one in found
    ]
    heads = ["way", "images", "start", "after training", "in the end", "sent by sites", "time"]
    print_table("EfficientNet-Lite0 on Fashion-MNIST at 96 pixels, ten sites", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round at 32 pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS)[:-1], default=list(SPLITS)[:-1])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="results of other runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "finetune.json")
    options = parser.parse_args()
    facts = machine()
    found = [one for path in options.add for one in json.loads(path.read_text())["runs"]]
    for seed in options.seeds[:1] if options.quick else options.seeds:
        # Runs of one process share what the frozen layers make of the images.
        due = [(way, split) for way in options.ways if way != "pooled" for split in options.splits]
        if "pooled" in options.ways:
            due.insert(0, ("pooled", "pooled"))
        for way, split in sorted(due, key=lambda one: one[0] == "scratch"):
            found.append(measure(way, split, seed, options.quick))
            print({key: value for key, value in found[-1].items() if key != "rounds"}, flush=True)
            content = {
                "benchmark": "finetune",
                "quick": options.quick,
                "machine": facts,
                "goal": GOAL,
                "runs": found,
                "compared": compared(found),
            }
            write_json(options.out, content)
    show(found)


if __name__ == "__main__":
    main()
