"""Full fine-tuning beside LoRA, FFA-LoRA, FedEx-LoRA and the head alone: accuracy and bytes.

    fedsight data get efficientnet-lite0
    python benchmarks/lora.py [--quick] [--folder DIR]

Twenty sites share the built-in Fashion-MNIST images (Dirichlet 1.0), enlarged to 64 pixels, and
fine-tune EfficientNet-Lite0 from its ImageNet weights; five sites take part in each of 20 rounds.
The ways of one seed have the same images, sites, cohorts and order of images; they differ in what
learns and in its learning rate. The rates were chosen with another seed than those shown (`--seeds
100 --ways lora --rate 0.003`). Accuracy is that of the final model on the 2,000 test images.
Differences are in points, to full fine-tuning with the same seed; bytes are those that sites sent,
and those that they received, as ratios to full fine-tuning's. Results are written after every run;
finished runs in `--folder` are not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import RESULTS, machine, once, print_table, write_json

import fedsight

RANK = 4
WAYS: dict[str, tuple[float, dict[str, Any]]] = {  # learning rate of all but the head, and settings
    "full": (2e-4, {}),
    "lora": (5e-3, {"adapter": {"name": "lora", "rank": RANK}}),
    "ffa-lora": (1e-2, {"adapter": {"name": "ffa-lora", "rank": RANK}}),
    "fedex-lora": (
        5e-3,
        {"adapter": {"name": "lora", "rank": RANK}, "algorithm": {"name": "fedex-lora"}},
    ),
    "head": (5e-3, {"train": {"only": ["head"]}}),
}
HEAD = 5e-3  # learning rate of the head, which begins anew, whatever else learns
GOAL = {"points": -1.0, "bytes": 0.05}  # of LoRA


def job(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The config of one run."""
    usual, changed = WAYS[way]
    train = {
        "optimiser": "adamw",
        "lr": usual if options.rate is None else options.rate,
        "groups": [{"params": ["head"], "lr": HEAD}],
        "schedule": "cosine",
        "batch": 32,
        **changed.get("train", {}),
    }
    return {
        "name": f"lora-{way}-{seed}",
        "seed": seed,
        "data": {"name": "fashion-mnist-12k", "size": options.size, "channels": 3},
        "split": {"name": "dirichlet", "sites": 20, "alpha": 1.0},
        "model": {
            "name": "timm",
            "architecture": "tf_efficientnet_lite0",
            "weights": "efficientnet-lite0",
        },
        "rounds": {"rounds": options.rounds, "cohort": options.cohort, "evaluate_every": 1000},
        "train": train,
        **{key: value for key, value in changed.items() if key != "train"},
    }


def measure(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run, or what is left of it: its accuracy and what it sent."""
    tables = job(way, seed, options)
    # what differs between calls; a finished run is not compared with what is asked for now
    place = options.folder / "-".join(map(str, (way, seed, tables["train"]["lr"], options.rounds)))
    run = once(place, lambda: fedsight.run(tables, out=place))
    summary, history = run.summary, run.history
    return {
        "way": way,
        "seed": seed,
        "accuracy": summary["accuracy"],
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "bytes_of_a_reply": history[-1]["bytes_up"] // history[-1]["replies"],
        "seconds": round(sum(line["seconds"] for line in history), 1),
    }


def paired(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By way: mean accuracy, the differences to full fine-tuning in points, the ratio of bytes."""
    known = {(one["way"], one["seed"]): one for one in found}
    summary = {}
    for way in WAYS:
        mine = [one for one in found if one["way"] == way]
        pairs = [
            (one, known["full", one["seed"]]) for one in mine if ("full", one["seed"]) in known
        ]
        if not mine:
            continue
        points = [round(100 * (one["accuracy"] - full["accuracy"]), 2) for one, full in pairs]
        summary[way] = {
            "accuracy": round(mean(one["accuracy"] for one in mine), 4),
            "points": points,
            "mean_points": round(mean(points), 2) if points else None,
            "deviation": round(stdev(points), 2) if len(points) > 1 else None,
            "bytes": ratio(pairs, "bytes_up"),
            "bytes_down": ratio(pairs, "bytes_down"),
        }
    return summary


def ratio(pairs: list[tuple[dict[str, Any], dict[str, Any]]], key: str) -> float | None:
    """The mean ratio of a figure to full fine-tuning's; None where there is none to compare."""
    known = [one[key] / full[key] for one, full in pairs if full[key]]
    return round(mean(known), 4) if known else None


def reached(summary: dict[str, dict[str, Any]]) -> bool | None:
    """Whether LoRA ends within a point of full fine-tuning and sends at most 5 % of its bytes."""
    one = summary.get("lora", {})
    if one.get("mean_points") is None:
        return None
    return bool(one["mean_points"] >= GOAL["points"] and one["bytes"] <= GOAL["bytes"])


def show(found: list[dict[str, Any]], summary: dict[str, dict[str, Any]]) -> None:
    """The table."""
    rows = []
    for way, one in summary.items():
        points = "" if one["mean_points"] is None else f"{one['mean_points']:+.2f}"
        each = " ".join(f"{value:+.2f}" for value in one["points"])
        up, down = (
            "" if one[key] is None else f"{one[key]:.1%}" for key in ("bytes", "bytes_down")
        )
        size = next(run["bytes_of_a_reply"] for run in found if run["way"] == way)
        rows.append([way, f"{one['accuracy']:.2%}", points, each, f"{size / 1e6:.2f} MB", up, down])
    heads = ["way", "accuracy", "points to full", "each seed", "a site sends", "of full", "down"]
    print_table("EfficientNet-Lite0 on Fashion-MNIST at 64 pixels, twenty sites", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one round of one site, 32 pixels"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rate", type=float, help="instead of the learning rate of the ways")
    parser.add_argument("--out", type=Path, default=RESULTS / "lora.json")
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 20)
    options.size, options.cohort = (32, 1) if options.quick else (64, 5)
    facts, found = machine(), []
    with tempfile.TemporaryDirectory(prefix="fedsight-lora-") as place:
        options.folder = options.folder or Path(place)
        for seed in options.seeds[:1] if options.quick else options.seeds:
            for way in options.ways:
                found.append(measure(way, seed, options))
                print(found[-1], flush=True)
                summary = paired(found)
                content = {
                    "benchmark": "lora",
                    "quick": options.quick,
                    "machine": facts,
                    "jobs": {way: job(way, 0, options) for way in options.ways},
                    "goal": GOAL,
                    "reached": reached(summary),
                    "summary": summary,
                    "results": found,
                }
                write_json(options.out, content)
    show(found, summary)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
