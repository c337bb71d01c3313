"""Robustness and over-fitting in the main job, with and without AugMix.

    python benchmarks/robustness.py [--seeds 5] [--quick] [--ways plain augmix] [--folder DIR]

The built-in job (`make run`: ten sites, Dirichlet 0.3) with seeds 0 to 4. Corrupted: the mean share
of right answers over six corruptions at five severities. Gap: the share of right answers on
training images less that on test images. `sites` are means over the sites, each in its own mix of
classes, of the models that they get and of their own. Differences are paired by seed, with the 95 %
interval of Student's t. A run that is finished is not repeated if the folder is given again, and
ways that the results file has already are kept beside those that `--ways` names.
With AugMix the federated model alone is trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, example, machine, once, print_table, write_json

import fedsight
from fedsight.core.intervals import of_mean

WAYS = {"plain": [], "augmix": ["augmix"]}
ARMS = ("federated", "pooled", "sites, delivered", "sites, alone")


def measured(way: str, seed: int, folder: Path, quick: bool) -> dict[str, dict[str, float]]:
    """By arm: accuracy on clean and corrupted images, and the gap; with AugMix, of one arm only."""
    place = folder / f"{way}-{seed}"
    table = example("fashion") | {"name": f"{way}-{seed}", "seed": seed}
    table["trust"] = {**table.get("trust", {}), "robustness": True}
    table["train"] |= {"augment": [*table["train"].get("augment", []), *WAYS[way]]}
    if quick:
        table["rounds"]["rounds"] = 2
    train = fedsight.run if WAYS[way] else fedsight.compare
    run = once(place, lambda: train(table, out=place))
    stress, gaps = run.summary["robustness"], run.summary["overfitting"]
    found = {
        arm: {
            "clean": gaps[arm]["test"],
            "corrupted": stress[arm]["corrupted"],
            "gap": gaps[arm]["gap"],
        }
        for arm in ("federated", "pooled")
        if stress.get(arm)
    }
    if WAYS[way]:
        return found
    for arm, key in (("sites, delivered", "federated"), ("sites, alone", "alone")):
        found[arm] = {"corrupted": stress["sites"][key], "gap": gaps["sites"][key]}
    return found


def kept(path: Path, quick: bool) -> dict[str, Any]:
    """What the results have, by way."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return dict(before["runs"]) if before["quick"] == quick else {}


def paired(first: list[float], second: list[float]) -> dict[str, Any]:
    """The mean difference in points, and its 95 % interval (NaN for one seed)."""
    apart = [100 * (one - other) for one, other in zip(first, second, strict=True)]
    low, high = of_mean(apart)
    return {"mean": statistics.fmean(apart), "interval": [low, high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds, one seed")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "robustness.json")
    given = parser.parse_args()
    seeds = 1 if given.quick else given.seeds
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        runs = kept(given.out, given.quick)
        for way in given.ways:
            runs[way] = [measured(way, seed, folder, given.quick) for seed in range(seeds)]
    rows = []
    for way, found in runs.items():
        for arm in ARMS:
            row = [way, arm]
            if arm not in found[0]:
                continue
            for key in ("clean", "corrupted", "gap"):
                known = [one[arm][key] for one in found if key in one[arm]]
                row.append(f"{100 * statistics.fmean(known):.2f}" if known else "")
            rows.append(row)
    print_table(
        "Accuracy in per cent, gap in points", ["way", "model", "clean", "corrupted", "gap"], rows
    )
    compared = {}
    for way, found in runs.items():
        for first, second in (("federated", "pooled"), ("sites, delivered", "sites, alone")):
            for key in ("corrupted", "gap") if second in found[0] else ():
                each = [[one[arm][key] for one in found] for arm in (first, second)]
                compared[f"{way}: {key}, {first} less {second}"] = paired(*each)
    if len(runs) == 2:
        for key in ("clean", "corrupted", "gap"):
            shared = min(map(len, runs.values()))  # the first seeds of both
            each = [
                [one["federated"][key] for one in runs[way][:shared]] for way in ("augmix", "plain")
            ]
            compared[f"{key}, federated: AugMix less plain"] = paired(*each)
    columns = ["difference in points", "mean", "95 % interval"]
    lines = [
        [
            name,
            f"{one['mean']:+.2f}",
            "" if one["interval"] is None else "{:+.2f} to {:+.2f}".format(*one["interval"]),
        ]
        for name, one in compared.items()
    ]
    print_table("Paired by seed", columns, lines)
    result = {"benchmark": "robustness", "quick": given.quick, "machine": machine()}
    write_json(
        given.out,
        {
            **result,
            "seeds": {way: len(found) for way, found in runs.items()},
            "runs": runs,
            "compared": compared,
        },
    )


if __name__ == "__main__":
    main()
