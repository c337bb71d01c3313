"""Adapting a pretrained network among sites: accuracy, bytes and rounds of five ways, paired.

    fedsight data get efficientnet-lite0
    python benchmarks/finetune.py [--quick]

Ten sites share the built-in Fashion-MNIST images, enlarged to 96 pixels: Dirichlet 0.1 (the example
`finetune`), Dirichlet 0.3, and two classes at each site. A tenth of each site's images is set
aside.

- `finetune`: the example, a closed-form head on EfficientNet-Lite0's features on grids, one round
- `ridge`: the same without grids
- `steps`: from the head of `ridge`, blocks 4 and 5 learn for 96 rounds of one step (Adam at the
  coordinator), as in the guide to closed-form heads
- `pooled`: as many steps on all images in one place, each of as many images as all sites together
  take, from a `ridge` head of those images
- `scratch`: FedAvg from nothing, the example `fashion` among the same sites

Accuracy is that of the final model on the 2,000 test images, the same for all; the recipes were
chosen by 5,000 images of the full data set's training part that are in neither part of the built-in
set. Differences are paired: for each test image, the mean over the seeds of whether `finetune` is
right less whether the other is. Their 95 % interval is over the images. Finished runs are kept in
the results file, so the benchmark can be interrupted and started again, and `--seeds`, `--splits`
and `--ways` add to it; `--fresh` begins anew. On two cores that had other work, too, a run of
`finetune` took three minutes, one of `steps` six and one of `pooled` nine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import RESULTS, example, machine, print_table, write_json

import fedsight
from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.core.intervals import of_mean
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.answers import Respondent
from fedsight.program.federation import federate
from fedsight.program.kept import keep

SPLITS: dict[str, dict[str, Any]] = {
    "dirichlet-0.1": {"name": "dirichlet", "sites": 10, "alpha": 0.1},
    "dirichlet-0.3": {"name": "dirichlet", "sites": 10, "alpha": 0.3},
    "two-classes": {"name": "labels", "sites": 10, "labels": 2},
}
ONE_PLACE = "one-place"
GOAL = {  # points, of the mean over the seeds
    "to ridge": 0.5, "to pooled, dirichlet-0.3": -1.5, "to pooled, two-classes": -3.0
}  # fmt: skip
WAYS = ("ridge", "finetune", "scratch", "pooled", "steps")
# A step of Adam on the mean of the sites' gradients, and a head that is held still.
STEPS: dict[str, Any] = {
    "algorithm": {"name": "fedadam", "server_lr": 0.0002, "beta2": 0.99, "tau": 0.00001},
    "train": {
        "only": ["features.body.blocks.4.*.conv_pw*", "features.body.blocks.5.*.conv_pw*", "head"],
        "steps": 1,
        "batch": 32,
        "lr": 1.0,
        "groups": [{"params": ["head"], "lr": 1e-9}],
        "schedule": "cosine",
    },
}
ROUNDS = 96
IMAGES = 2000  # of the test part
PREFIX = "features.body.tap0"  # what is before it is frozen in all ways


def job(way: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """The config of one run."""
    table = example("fashion" if way == "scratch" else "finetune")
    sites = table["split"]["sites"]
    table |= {"name": f"{way}-{split}", "seed": seed}
    table["split"] = {"name": "iid", "sites": 1} if split == ONE_PLACE else SPLITS[split]
    if way not in ("finetune", "scratch"):
        del table["model"]["grids"], table["algorithm"]["strengths"]  # cross-validated
    if way in ("steps", "pooled"):
        table |= STEPS | {"start": table["algorithm"], "speed": {"cache_at": PREFIX}}
        table["rounds"] |= {"rounds": ROUNDS, "evaluate_every": ROUNDS}
    if way == "pooled":
        table["train"] = STEPS["train"] | {"batch": sites * STEPS["train"]["batch"]}
    if quick:
        table["rounds"] |= {"rounds": 1}
        if way != "scratch":
            table["data"]["size"] = 64
    return table


def measure(way: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run: its accuracy, what a site sent and received, and which test images are wrong."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fedsight-finetune-") as folder:
        run = fedsight.run(job(way, split, seed, quick), out=Path(folder) / way)
        seconds = time.perf_counter() - began
        summary, sites = run.summary, len(run.history[-1]["sites"])
        missed = wrong(Path(folder) / way)
    return {
        "way": way,
        "split": split,
        "seed": seed,
        "accuracy": summary["accuracy"],
        "rounds": len(run.history),
        "bytes_up_of_a_site": summary["bytes_up"] // sites,
        "bytes_down_of_a_site": summary["bytes_down"] // sites,
        "seconds": round(seconds, 1),
        "wrong": " ".join(map(str, missed)),  # one line of the file
    }


def wrong(folder: Path) -> list[int]:
    """The test images that the common model of a finished run gives another class."""
    store = RunStore(folder)
    program, speed = store.program()
    federation, checkpoint = federate(program), store.load_checkpoint()
    assert checkpoint is not None
    keep(federation, speed)  # what this process already has of the frozen layers
    final = Final(federation, speed, checkpoint.model, MemoryStore(store.memory))
    found = Respondent.of(final, False).answers([federation.tested(federation.views[0])])
    return torch.nonzero(found.logits.argmax(1) != found.labels).flatten().tolist()


def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By split and other way: the points of `finetune` to it, paired, and whether they suffice."""
    known = {(one["way"], one["split"], one["seed"]): one for one in found}
    rows = []
    for split in SPLITS:
        for way in WAYS:
            place = ONE_PLACE if way == "pooled" else split
            seeds = [
                seed for name, where, seed in known
                if (name, where) == ("finetune", split) and (way, place, seed) in known
            ]  # fmt: skip
            if way == "finetune" or not seeds:
                continue
            better = torch.zeros(IMAGES, dtype=torch.float64)
            for seed in seeds:
                better[positions(known[way, place, seed])] += 100 / len(seeds)
                better[positions(known["finetune", split, seed])] -= 100 / len(seeds)
            least = GOAL.get(f"to {way}, {split}", GOAL.get(f"to {way}"))
            points = float(better.mean())
            rows.append({
                "split": split,
                "to": way,
                "seeds": sorted(seeds),
                "points": round(points, 2),
                "interval": [round(end, 2) for end in of_mean(better.tolist())],
                "reached": None if least is None else points >= least,
            })  # fmt: skip
    return rows


def positions(one: dict[str, Any]) -> list[int]:
    """The test images that a run has wrong."""
    return [int(position) for position in one["wrong"].split()]


def show(found: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> None:
    """The tables."""
    rows = []
    for way in WAYS:
        for split in (*SPLITS, ONE_PLACE):
            mine = [one for one in found if (one["way"], one["split"]) == (way, split)]
            if not mine:
                continue
            each = [one["accuracy"] for one in mine]
            sent = [
                fmean(one[f"bytes_{side}_of_a_site"] for one in mine) for side in ("up", "down")
            ]
            rows.append([
                way, split, str(len(mine)), f"{fmean(each):.2%}",
                f"{min(each):.2%} to {max(each):.2%}", str(mine[0]["rounds"]),
                *(f"{size / 1e6:.1f} MB" for size in sent),
            ])  # fmt: skip
    heads = ["way", "images", "seeds", "accuracy", "range", "rounds", "a site sends", "receives"]
    print_table("EfficientNet-Lite0 on Fashion-MNIST at 96 pixels, ten sites", heads, rows)
    lines = [
        [
            one["split"],
            one["to"],
            str(len(one["seeds"])),
            f"{one['points']:+.2f}",
            "{:+.2f} to {:+.2f}".format(*one["interval"]),
            {True: "yes", False: "no", None: ""}[one["reached"]],
        ]
        for one in pairs
    ]
    columns = ["images", "finetune less", "seeds", "points", "95 % interval", "goal reached"]
    print_table("Paired by test image", columns, lines)


def kept(path: Path, quick: bool) -> list[dict[str, Any]]:
    """The finished runs in the results file."""
    if not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    return list(before["runs"]) if before["quick"] == quick else []


def due(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """All runs, those of one network after another: they share what its frozen layers make of the
    images."""
    seeds = options.seeds[:1] if options.quick else options.seeds
    return [
        (way, split, seed)
        for way in options.ways
        for seed in seeds
        for split in ([ONE_PLACE] if way == "pooled" else options.splits)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one round at 64 pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--fresh", action="store_true", help="forget the finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "finetune.json")
    options = parser.parse_args()
    facts = machine()
    found = [] if options.fresh else kept(options.out, options.quick)
    for way, split, seed in due(options):
        if any((one["way"], one["split"], one["seed"]) == (way, split, seed) for one in found):
            continue
        found.append(measure(way, split, seed, options.quick))
        print({key: value for key, value in found[-1].items() if key != "wrong"}, flush=True)
        content = {
            "benchmark": "finetune",
            "quick": options.quick,
            "machine": facts,
            "goal": GOAL,
            "compared": compared(found),
            "runs": found,
        }
        write_json(options.out, content)
    show(found, compared(found))


if __name__ == "__main__":
    main()
