"""Who gains by joining: what each site gets against what it has alone, in the main job.

    python benchmarks/delivery.py [--seeds 5] [--quick]

The built-in job (`make run`: ten sites, Dirichlet 0.3) with seeds 0 to 4, so fifty sites. Each site
chooses the model that it gets on images of its own. A site is better off if that model's figure, in
the site's own label mix, is above its own model's and it did not choose its own. Further columns
say what every site would have had with one kind of model for all. A run that is finished is not
repeated: the folder can be given again after an interruption.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, example, machine, once, print_table, write_json

import fedsight

GOALS = {"better of 50": 46, "mean gain": 1.5, "federated": 0.879, "pooled": 0.887}


def seeded(folder: Path, seed: int, quick: bool) -> fedsight.Run:
    """The comparison with one seed."""
    table = example("fashion") | {"seed": seed}
    if quick:
        table["rounds"]["rounds"] = 3
    return once(folder, lambda: fedsight.compare(table, out=folder))


def figures(run: fedsight.Run) -> dict[str, Any]:
    """What one run says of its sites; gains in points."""
    summary, comparison = run.summary, run.comparison
    assert comparison is not None
    given = comparison["delivered"]
    own = {name: one["own_score"] for name, one in comparison["alone"].items()}
    held_out = {
        name: 100 * (one["by_kind"][one["kind"]]["figure"] - one["by_kind"]["alone"]["figure"])
        for name, one in given.items()
        if one["held_out"]
    }
    return {
        "sites": summary["sites"],
        "better": summary["sites_better"],
        "worse_beyond_chance": summary["sites_worse"],
        "gains": summary["gain_by_site"],
        "gains_held_out": held_out,
        "shared_gains": {
            name: 100 * (score - own[name])
            for name, score in comparison["federated"]["by_site"].items()
        },
        "kinds": summary["delivered_by_site"],
        "federated": summary["federated"],
        "pooled": summary["pooled"],
        "alone": summary["alone_mean"],
        "model_sha256": summary["model_sha256"],
    }


def told(seed: str, found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    gains = list(found["gains"].values())
    return [
        seed,
        f"{found['better']} of {found['sites']}",
        str(len(found["worse_beyond_chance"])),
        f"{statistics.fmean(gains):+.2f}",
        f"{min(gains):+.2f}",
        f"{statistics.fmean(found['gains_held_out'].values()):+.2f}",
        f"{statistics.fmean(found['shared_gains'].values()):+.2f}",
        f"{found['federated']:.4f}",
        f"{found['pooled']:.4f}",
        f"{found['alone']:.4f}",
    ]


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """All seeds as one."""
    summed: dict[str, Any] = {key: sum(one[key] for one in found) for key in ("sites", "better")}
    for key in ("gains", "gains_held_out", "shared_gains"):
        summed[key] = {f"{n}/{k}": v for n, one in enumerate(found) for k, v in one[key].items()}
    for key in ("federated", "pooled", "alone"):
        summed[key] = statistics.fmean(one[key] for one in found)
    summed["worse_beyond_chance"] = [name for one in found for name in one["worse_beyond_chance"]]
    return summed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three rounds, one seed")
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "delivery.json")
    given = parser.parse_args()
    seeds = 1 if given.quick else given.seeds
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        found = [
            figures(seeded(folder / f"seed-{seed}", seed, given.quick)) for seed in range(seeds)
        ]
    columns = ["seed", "better off", "worse beyond chance", "mean gain", "least gain"]
    columns += ["gain, held-out images", "shared model for all"]
    rows = [told(str(seed), one) for seed, one in enumerate(found)]
    every = together(found)
    rows.append(told("all", every))
    title = "Gains in points, of the delivered model against the site's own"
    print_table(title, [*columns, "federated", "pooled", "alone"], rows)
    kinds = [kind for one in found for kind in one["kinds"].values()]
    counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    print(f"delivered: {counted}; asked: {GOALS}")
    result = {"machine": machine(), "goals": GOALS, "delivered": counted, "all": every}
    write_json(given.out, {**result, "seeds": found})


if __name__ == "__main__":
    main()
