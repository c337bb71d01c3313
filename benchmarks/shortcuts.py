"""Whether a mark that only one site's images have is found, and how often one is named without it.

    python benchmarks/shortcuts.py [--seeds 10] [--first 10] [--quick] [--ways plain bright]
        [--folder DIR]

Real garments (2,000 of the built-in sample) at five sites, Dirichlet 0.5, seeds 10 to 19: the rule
was chosen by looking at seeds 0 to 9, which flatter it. The planted site and class are the site
with number seed modulo 5 and the class of which it has most images; all of its images of that
class, held-out ones too, get a square of 4 by 4 pixels near a corner, which is the seed's. Ways:

  plain       no mark
  shift       no mark, and devices differ in contrast: site 0 has all of it, the last site half
  bright      the mark is white
  faint       the mark has half of that brightness
  everywhere  the white mark is on the images of the class at all sites

A run counts as found if the report names the site, the class and a spot that holds the whole mark.
It is comparable if other sites have enough images of the class for anything to be found.
`used` says, apart from that, whether the model has learnt the mark: the share of test images of
other classes whose odds of the class at least double with it. A run that is finished is not
repeated if the folder is given again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, once, print_table, write_json
from torch import Tensor

import fedsight
from fedsight.data.base import ArrayImages, Dataset, Part
from fedsight.data.sources.samples import FashionMnist12k
from fedsight.data.splits.dirichlet import Dirichlet

SITES, IMAGES, TESTED, SIDE, INSET = 5, 2000, 500, 4, 1
ROUNDS = 6
WAYS = {"plain": 0, "shift": 0, "bright": 255, "faint": 128, "everywhere": 255}


@dataclass(frozen=True)
class Plant:
    """Who has the mark: a site and a class by number, and the mark's top left pixel."""

    site: int
    label: int
    top: int
    left: int

    def mark(self, pixels: Tensor, value: int) -> Tensor:
        """Images [n, 1, 28, 28] with the mark."""
        found = pixels.clone()
        found[:, :, self.top : self.top + SIDE, self.left : self.left + SIDE] = value
        return found

    def inside(self, box: list[float]) -> bool:
        """Whether a spot (left, top, right, bottom, as shares of the sides) holds the mark."""
        left, top, right, bottom = (28 * side for side in box)
        down = top - 0.01 <= self.top and self.top + SIDE <= bottom + 0.01
        return down and left - 0.01 <= self.left and self.left + SIDE <= right + 0.01


def stored(part: Part) -> Tensor:
    """The pixels [n, c, h, w] of images that are in memory."""
    assert isinstance(part.images, ArrayImages)
    return part.images.pixels


def planted(full: Dataset, seed: int, way: str) -> tuple[fedsight.Source, Plant]:
    """The sites' images with the mark, and who has it."""
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(len(full.train))[:IMAGES])
    labels, pixels = full.train.labels[kept], stored(full.train)[torch.from_numpy(kept)]
    part = Part(ArrayImages(pixels, "garments"), labels)
    split = Dirichlet(sites=SITES, alpha=0.5, min_samples=100).divide(part, 10, seed)
    site, far = seed % SITES, 28 - INSET - SIDE
    most = int(np.bincount(labels[split.indices(site)], minlength=10).argmax())
    plant = Plant(site, most, (INSET, far)[seed // 2 % 2], (INSET, far)[seed % 2])
    sites = {}
    for number in range(SITES):
        mine = split.indices(number)
        own, theirs = pixels[torch.from_numpy(mine)], labels[mine]
        if WAYS[way] and (number == site or way == "everywhere"):
            has = torch.from_numpy(theirs == most)
            own[has] = plant.mark(own[has], WAYS[way])
        sites[f"site-{number}"] = list(zip(own, theirs.tolist(), strict=True))
    tested = zip(stored(full.test)[:TESTED], full.test.labels[:TESTED].tolist(), strict=True)
    source = fedsight.sites(
        sites, test=list(tested), classes=full.classes, mean=[0.286], std=[0.353]
    )
    return source, plant


def measured(full: Dataset, way: str, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
    """What the run with one seed says, and whether that is right."""
    source, plant = planted(full, seed, way)
    place = folder / f"{way}-{seed}"
    changed: dict[str, Any] = {"shift": {"kind": "contrast", "strength": 0.5}}
    shift = changed if way == "shift" else {}
    run = once(
        place,
        lambda: fedsight.run(
            data=source, name=f"{way}-{seed}", seed=seed, out=place, split={"name": "natural"},
            model={"name": "small_cnn"}, task={"name": "classify", "label_smoothing": 0.1},
            train={"epochs": 2, "batch": 32, "lr": 0.03, "momentum": 0.9, "schedule": "cosine"},
            rounds={"rounds": 1 if quick else ROUNDS, "evaluate_every": ROUNDS, "validation": 0.2},
            trust={"shortcuts": True}, speed={"workers": 1}, **shift,
        ),
    )  # fmt: skip
    told = run.summary["shortcuts"]
    names = [(one["site"], one["label"]) for one in told["flagged"] if one["verdict"] == "shortcut"]
    right = (f"site-{plant.site}", full.classes[plant.label])
    boxes = [one["box"] for one in told["flagged"] if (one["site"], one["label"]) == right]
    marked = bool(WAYS[way]) and way != "everywhere"
    return {
        "accuracy": run.summary["score"],
        "found": marked and right in names and all(map(plant.inside, boxes)),
        "wrong": len([name for name in names if not (marked and name == right)]),
        "differs": sum(one["verdict"] == "differs" for one in told["flagged"]),
        "untested": sum(one["verdict"] == "untested" for one in told["flagged"]),
        "pairs": [told["compared"], told["pairs"]],
        "everywhere": [one["label"] for one in told["everywhere"]],
        "everywhere_right": any(
            one["label"] == right[1] and plant.inside(one["box"]) for one in told["everywhere"]
        ),
        "comparable": right[1] not in told["by_site"][right[0]]["uncompared"],
        "used": used(run, full, plant, WAYS[way]),
        "flagged": told["flagged"],
    }


def used(run: fedsight.Run, full: Dataset, plant: Plant, value: int) -> float | None:
    """The share of test images of other classes whose odds of the class double with the mark."""
    if not value:
        return None
    others = torch.from_numpy(full.test.labels[:TESTED] != plant.label)
    pixels = stored(full.test)[:TESTED][others]
    odds = []
    for some in (pixels, plant.mark(pixels, value)):
        answers = run.predict(some.float() / 255)
        shares = [one.table()["probabilities"][full.classes[plant.label]] for one in answers]
        odds.append(torch.tensor(shares).double().clamp(1e-9, 1 - 1e-9).logit())
    return float((odds[1] - odds[0] >= np.log(2)).double().mean())


def exact(hits: int, seeds: int) -> tuple[float, float]:
    """The 95 % interval of a share (Clopper and Pearson 1934). The units are seeds: runs of one
    seed have the same images, split and initial model, with and without the shift."""

    def beyond(share: float, least: int) -> float:
        """The probability of at least so many."""
        return sum(
            math.comb(seeds, n) * share**n * (1 - share) ** (seeds - n)
            for n in range(least, seeds + 1)
        )

    def share(least: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if beyond(middle, least) < wanted else (low, middle)
        return low

    return share(hits, 0.025) if hits else 0.0, share(hits + 1, 0.975) if hits < seeds else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=10, help="seed; default: 10")
    parser.add_argument("--quick", action="store_true", help="one round, one seed")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "shortcuts.json")
    given = parser.parse_args()
    full, seeds = FashionMnist12k().open(), 1 if given.quick else given.seeds
    drawn = range(given.first, given.first + seeds)
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        runs = {
            way: [measured(full, way, seed, folder, given.quick) for seed in drawn]
            for way in given.ways
        }
    rows = [
        [
            way,
            str(seeds),
            str(sum(one["found"] for one in found)),
            str(sum(one["comparable"] for one in found)),
            str(sum(one["wrong"] > 0 for one in found)),
            str(sum(one["differs"] > 0 for one in found)),
            str(sum(one["untested"] > 0 for one in found)),
            str(sum(bool(one["everywhere"]) for one in found)),
            "" if found[0]["used"] is None else f"{np.mean([one['used'] for one in found]):.0%}",
        ]
        for way, found in runs.items()
    ]
    columns = [
        "way",
        "runs",
        "site found",
        "comparable",
        "wrong site",
        "differs",
        "untested",
        "everywhere",
        "mark used",
    ]
    print_table("Runs by what the report says", columns, rows)
    without = [runs[way] for way in ("plain", "shift") if way in runs]
    alarms = [any(one["wrong"] for one in same) for same in zip(*without, strict=True)]
    bounds = [*exact(sum(alarms), len(alarms))] if alarms else None
    result = {"benchmark": "shortcuts", "quick": given.quick, "machine": machine()}
    write_json(given.out, {**result, "seeds": [*drawn], "runs": runs, "false_alarms": bounds})


if __name__ == "__main__":
    main()
