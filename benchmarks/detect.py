"""Detection: what federation bought on composed scenes and on tree crowns, and partial labels.

    python benchmarks/detect.py [--quick] [scenes] [trees] [partial]

The jobs are the examples `scenes` and `trees`. Scenes are composed anew for each seed; trees are
tested on each of the four sides of their tiles in turn. Every site alone and all images pooled
train for as many rounds and epochs as the federation, and all are tested on the same images.
Where the federated model loses: with one view of an image instead of `model.views`, on training
images, and if its scores, or its boxes, were right (`losses`).
`partial`: three classes, three sites that each label one of them; the same with all labels; and
the naive way, in which an unlabelled object is background. The quick run has one repetition.
Trees need: fedsight data get deepforest-trees; fedsight data get mobilenet-weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import RESULTS, example, machine, print_table, spread, write_json
from torch import Tensor
from torchvision.ops import box_iou

from fedsight.coordinator.store import RunStore
from fedsight.data.base import Part
from fedsight.data.detection.boxes import present, trimmed
from fedsight.inference.saved import Saved, load
from fedsight.program.config import parse
from fedsight.program.program import Program, Speed
from fedsight.runs.lifecycle import Start, start
from fedsight.tasks.detection import precision

ROUNDS = 120  # of the partial labels
CLASSES = ["Trouser", "Sandal", "Bag"]
SIDES = ("left", "right", "top", "bottom")
NEAR = 0.1  # IoU from which a box would be that of the object, if boxes were right
ONE = Speed(workers=1)  # several runs side by side keep the cores busier than one with few sites


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


def compared(tables: dict[str, Any]) -> dict[str, Any]:
    """Federated, pooled and alone: mAP over IoU 0.50 to 0.95 and at 0.50."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        program, _ = parse(tables, base=Path.cwd())
        run = Path(folder) / "run"
        start(Start(program, ONE, RunStore(run), "compare"), [])
        found = json.loads((run / "comparison.json").read_text())
        lost = losses(program, load(run))

    def figures(entry: dict[str, Any]) -> dict[str, float]:
        return {key: entry[key] for key in ("map", "map_50")}

    return {
        "federated": figures(found["federated"]),
        "pooled": figures(found["pooled"]),
        "alone": {site: figures(entry) for site, entry in found["alone"].items()},
        "by_site": found["federated"]["by_site"],
        "losses": lost,
        "seconds": round(time.perf_counter() - began, 1),
    }


def losses(program: Program, saved: Saved) -> dict[str, float]:
    """mAP of a federated model with one view of a test image; on training images; and on test
    images, if scores were how well boxes fit, or boxes those of the objects that they fit best."""
    module: Any = saved.module.eval()
    data, task = program.data.open(), program.task

    def images(part: Part, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.arange(0, len(part), max(1, len(part) // count))
        assert part.targets is not None
        return saved.preprocess.normalise(part.images.read(chosen)), trimmed(part.targets[chosen])

    def score(found: Tensor, targets: Tensor) -> float:
        ranges = precision.areas(task.small, task.medium)  # type: ignore[attr-defined]
        counts, objects = precision.histograms(found, targets, module.classes, ranges)
        return float(np.nanmean(precision.average_precision(counts, objects)[:, 0].mean(1)))

    with torch.inference_mode():
        x, y = images(data.test, len(data.test))
        found = module.find(x)
        seen, known = images(data.train, 60)
        result = {"training images": score(module.find(seen), known)}
        module.views, views = 1, module.views
        result["one view"] = score(module.find(x), y)
        module.views = views
    ranked, placed = found.clone(), found.clone()
    for at, rows in enumerate(found):
        ours = y[at][present(y)[at]]
        fits = box_iou(rows[:, 2:], ours[:, 1:]) * (rows[:, :1] == ours[None, :, 0])
        if not len(ours):
            ranked[at, :, 1] *= 1e-4
            continue
        best, which = fits.max(1)
        ranked[at, :, 1] = torch.where(rows[:, 1] > 0, best.clamp(1e-4, 1 - 1e-4), 0.0)
        placed[at, :, 2:] = torch.where(best[:, None] >= NEAR, ours[which, 1:], rows[:, 2:])
    return {**result, "right scores": score(ranked, y), "right boxes": score(placed, y)}


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
        # A third of the boxes are soon known by heart, unless scenes look different each time.
        tables["task"]["zoom"] = 1.4
        tables["train"] |= {"epochs": 1, "batch": 16, "lr": 0.04}
        # Equally many steps for a third of the scenes, or fewer labels would mean less training.
        rounds = (40 if quick else ROUNDS) * scenes // count
        tables["rounds"] |= {"rounds": rounds, "evaluate_every": rounds}
        yield name, tables


def trained(tables: dict[str, Any]) -> dict[str, float]:
    """The federated model's figures."""
    with tempfile.TemporaryDirectory() as folder:
        program, _ = parse(tables, base=Path.cwd())
        summary = start(Start(program, ONE, RunStore(Path(folder) / "run"), "run"), [])
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
    kinds = list(next(iter(runs.values()))["losses"])
    values = [f"{mean(run['losses'][kind] for run in runs.values()):.3f}" for kind in kinds]
    print_table(f"{name}: mean mAP of the federated model", kinds, [values])


def labels(job: str, runs: dict[str, dict[str, float]]) -> None:
    """One line for each way of labelling."""
    rows = [[name, *(f"{value:.3f}" for value in run.values())] for name, run in runs.items()]
    print_table("Partial labels", ["labels", "mAP", "AP at 0.50", "F1 at 0.50, score 0.3"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("jobs", nargs="*", default=["scenes", "trees", "partial"])
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--repetitions", type=int, default=4, help="at most; scenes have 3")
    parser.add_argument("--at-once", type=int, help="runs side by side; else one for each core")
    options = parser.parse_args()
    path = RESULTS / ("detect-quick.json" if options.quick else "detect.json")
    results = json.loads(path.read_text()) if path.exists() else {}
    count = 1 if options.quick else options.repetitions
    with ProcessPoolExecutor(options.at_once, get_context("spawn")) as pool:
        for job in options.jobs:
            ways = partial(options.quick) if job == "partial" else repetitions(job, count)
            measure = trained if job == "partial" else compared
            found = {pool.submit(measure, tables): name for name, tables in ways}
            runs: dict[str, Any] = {}
            for done in as_completed(found):
                runs[found[done]] = done.result()
                print(job, found[done], done.result(), flush=True)
                # in their order, and what is done so far
                runs = {name: runs[name] for name in found.values() if name in runs}
                results[job] = {"machine": machine(), "runs": runs}
                write_json(path, results)
            (labels if job == "partial" else table)(job, runs)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
