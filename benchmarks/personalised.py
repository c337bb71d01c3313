"""What each site gets, beside personalised algorithms: FedRep, Ditto, FedPer and APFL.

    fedsight data get fashion-mnist
    python benchmarks/personalised.py [--quick] [--folder DIR] [--seeds 1]

Twenty sites share all of Fashion-MNIST's training images (Dirichlet 0.1, or two classes each), the
settings of PFLlib's table (Zhang et al. 2025, arXiv:2312.04992), whose figures stand beside ours:
its partition, network, number of rounds and test images differ (a quarter of each client's own
images; here the 10,000 test images, each class weighted as among the site's training images), so
the comparison that counts is the paired one, among our own runs of the same rounds. Accuracy is the
mean over sites, each weighted by its training images. `delivered` is what `compare` gives each
site at the end of a run: the shared model, corrected or tuned, or its own, whichever did best on
images that it held out. The interval is that of the mean difference to the best algorithm, over
sites. Finished runs in `--folder` are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common import RESULTS, machine, once, print_table, write_json

import fedsight

SPLITS: dict[str, dict[str, Any]] = {
    "dirichlet-0.1": {"name": "dirichlet", "sites": 20, "alpha": 0.1},
    "2-labels": {"name": "labels", "sites": 20, "labels": 2},
}
ALGORITHMS = ("fedrep", "ditto", "fedper", "apfl")
PUBLISHED = {  # PFLlib's, in per cent; FedCP is the best of its table
    "dirichlet-0.1": {"fedavg": 85.85, "fedrep": 97.56, "ditto": 97.47, "fedcp": 97.89},
    "2-labels": {"fedavg": 80.41, "fedrep": 99.56, "ditto": 99.44, "fedcp": 99.66},
}
DELIVERED = "delivered"


def job(algorithm: str, split: str, seed: int, quick: bool) -> dict[str, Any]:
    """The config of one run; all have the same local epochs and rounds."""
    plain = {"epochs": 1, "batch": 32, "lr": 0.03}
    # APFL takes plain steps only; the others have the momentum of the main job.
    own = {} if algorithm == "apfl" else {"momentum": 0.9}
    return {
        "name": f"{algorithm}-{split}-{seed}",
        "seed": seed,
        "data": {"name": "fashion-mnist-12k" if quick else "fashion-mnist"},
        "split": SPLITS[split],
        "model": {"name": "small_cnn"},
        "algorithm": {"name": algorithm},
        "train": {**plain, **own, "schedule": "cosine"},
        "rounds": {"rounds": 2 if quick else 20, "validation": 0.1, "evaluate_every": 20},
    }


def finished(algorithm: str, split: str, seed: int, options: argparse.Namespace) -> fedsight.Run:
    """The run, or what is left of it; FedAvg's is compared, and so delivers."""
    place = options.folder / f"{algorithm}-{split}-{seed}"
    way = fedsight.compare if algorithm == "fedavg" else fedsight.run
    return once(place, lambda: way(job(algorithm, split, seed, options.quick), out=place))


def by_site(run: fedsight.Run, delivered: bool = False) -> dict[str, float]:
    """Accuracy in per cent of each site's model in its own label mix."""
    if delivered:
        assert run.comparison is not None
        return {name: 100 * one["score"] for name, one in run.comparison["delivered"].items()}
    sites = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))["sites"]
    return {name: 100 * one["score"] for name, one in sites.items()}


def images(run: fedsight.Run) -> dict[str, int]:
    """Training images of each site."""
    facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    return {one["name"]: one["samples"] for one in facts["sites"]}


def measure(split: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways on one partition: the accuracy of each site, and their weighted mean."""
    found = []

    def note(way: str, scores: dict[str, float], weights: dict[str, int]) -> None:
        total = sum(weights[name] for name in scores)
        mean = sum(weights[name] * score for name, score in scores.items()) / total
        one = {"way": way, "split": split, "seed": seed, "accuracy": mean, "by_site": scores}
        found.append({**one, "published": PUBLISHED[split].get(way)})
        print(f"{split}, seed {seed}, {way}: {mean:.2f} %", flush=True)

    run = finished("fedavg", split, seed, options)
    weights = images(run)
    assert run.comparison is not None
    note("fedavg", by_site(run), weights)
    note(DELIVERED, by_site(run, delivered=True), weights)
    alone = {name: 100 * one["own_score"] for name, one in run.comparison["alone"].items()}
    note("alone", alone, weights)
    for algorithm in ALGORITHMS:
        note(algorithm, by_site(finished(algorithm, split, seed, options)), weights)
    return found


def paired(found: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """What is delivered less the best algorithm: mean over sites and seeds, 95 % interval."""
    mine = [one for one in found if one["split"] == split]
    best = max(ALGORITHMS, key=lambda way: fmean(o["accuracy"] for o in mine if o["way"] == way))
    differences = []
    for seed in {one["seed"] for one in mine}:
        ours, theirs = (
            next(o["by_site"] for o in mine if o["seed"] == seed and o["way"] == way)
            for way in (DELIVERED, best)
        )
        differences += [ours[name] - theirs[name] for name in ours]
    half = 1.96 * stdev(differences) / len(differences) ** 0.5
    return {"split": split, "best": best, "difference": fmean(differences), "half": half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12,000 images, two rounds")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "personalised.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        options.folder = options.folder or Path(place)
        found: list[dict[str, Any]] = []
        for split in options.splits:
            for seed in range(options.seeds):
                found += measure(split, seed, options)
            compared = [paired(found, split) for split in dict.fromkeys(o["split"] for o in found)]
            content = {"benchmark": "personalised", "quick": options.quick, "machine": machine()}
            write_json(options.out, {**content, "paired": compared, "runs": found})
    ways = list(dict.fromkeys(one["way"] for one in found))
    rows = []
    for way in ways:
        row = [way]
        for split in options.splits:
            mine = [o for o in found if (o["way"], o["split"]) == (way, split)]
            published = mine[0]["published"]
            row += [f"{fmean(o['accuracy'] for o in mine):.2f}", f"{published or ''}"]
        rows.append(row)
    heads = ["way", *(head for split in options.splits for head in (split, "published"))]
    print_table("Accuracy in per cent in the sites' own label mix", heads, rows)
    for one in compared:
        ours = f"{one['difference']:+.2f} +- {one['half']:.2f} points"
        print(f"{one['split']}: delivered less {one['best']}, mean over sites: {ours}")


if __name__ == "__main__":
    main()
