"""Fine-tuning among sites beside all images in one place: accuracy, and the ridge head of each.

    fedsight data get efficientnet-lite0
    python benchmarks/finetune.py [--quick]

Ten sites share the built-in Fashion-MNIST images, enlarged to 96 pixels: Dirichlet 0.3, two
classes at each site, and Dirichlet 0.1 (the example `finetune`). They begin with the closed-form
head of EfficientNet-Lite0's features at several scales (`[start]`) and fine-tune the blocks that
the example names, one step a round. `pooled` takes as many steps on all images in one place, each
of as many images as all sites together take, from the same kind of start; `ridge` is the start, of
the images that the split leaves beside those for validation; `scratch` is the built-in example
`fashion` among the same sites. Accuracy is that of the final model on the 2,000 test images, the
same ones for all. The recipe was chosen with Dirichlet 0.1 on other images, of the full data set's
training part. Results are written after every run; those of other runs, in files named with
`--add`, are shown beside them.
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
WAYS = ("ridge", "finetune", "pooled", "scratch")
PREFIX = "features.body.tap0"  # what is before it is frozen, and runs once for each image


def job(way: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """The config of one run."""
    table = example("fashion" if way == "scratch" else "finetune")
    sites = table["split"]["sites"]
    table |= {"name": f"{way}-{split}", "seed": seed, "split": SPLITS[split]}
    if way != "scratch":
        table["speed"] = {"cache_at": PREFIX}
    if way == "ridge":
        table["algorithm"] = table.pop("start")
        table["train"] = {"only": table["train"]["only"]}
        table["rounds"] |= {"rounds": 1}
    if way == "pooled":
        table["train"] |= {"batch": sites * table["train"]["batch"]}
    if quick:
        table["rounds"] |= {"rounds": 1}
        if way != "scratch":
            table["data"]["size"] = 32
    return table


def measure(way: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run: its accuracy, what was sent, time, and the figures of its rounds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fedsight-finetune-") as folder:
        run = fedsight.run(job(way, split, seed, quick), out=Path(folder) / way)
        summary, history = run.summary, run.history
    return {
        "way": way,
        "split": split,
        "seed": seed,
        "accuracy": summary["accuracy"],
        "bytes_up": summary["bytes_up"],
        "seconds": round(time.perf_counter() - began, 1),
        "rounds": [
            {key: line.get(key) for key in ("round", "accuracy", "measured_on", "seconds")}
            for line in history
        ],
    }


def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By split and seed: the points of the federated run to the ridge head and the pooled run."""
    known = {(one["way"], one["split"], one["seed"]): one["accuracy"] for one in found}
    rows = []
    for (way, split, seed), accuracy in known.items():
        if way != "finetune":
            continue
        others = {"ridge": ("ridge", split, seed), "pooled": ("pooled", "pooled", seed)}
        points = {
            f"to_{name}": round(100 * (accuracy - known[other]), 2)
            for name, other in others.items()
            if other in known
        }
        reached = None
        if "to_pooled" in points and split in GOAL:
            reached = points["to_pooled"] >= GOAL[split]
        rows.append({"split": split, "seed": seed, **points, "reached": reached})
    return rows


def show(found: list[dict[str, Any]]) -> None:
    """The table."""
    rows = [
        [
            one["way"],
            one["split"],
            str(one["seed"]),
            f"{one['accuracy']:.2%}",
            f"{one['bytes_up'] / 1e6:.1f} MB",
            f"{one['seconds']:.0f} s",
        ]
        for one in found
    ]
    heads = ["way", "images", "seed", "accuracy", "sent by sites", "time"]
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
