"""Verification of unseen people, on images as they are and degraded: what the rounds add.

    fedsight data get orl-faces
    python benchmarks/faces.py [--quick]

The job is the example `faces` on the ORL faces, and whatever it starts from. Each split draws the
ten people who are verified, and who of the others is at which of the ten sites. The recipe was
chosen on splits 100 to 102, which are not among those shown; but of the 30 people who are tested
in splits 0 to 4, 17 were tested in those as well.

- `start`: the model before anything is learnt by gradient: the pretrained or fixed filters, and the
  whitening by the statistics of all sites. It is the federated job at a learning rate of 0
- `federated`: the example
- `pooled`: all images in one place, with as many passes, in steps of as many images as all sites
  together take
- `alone_best`: the best of ten sites in each split, chosen by its rate on degraded test images
- `closed_form`: no steps either; after the whitening, the features are whitened once more, by their
  covariance within people (Hatch, Kajarekar and Stolcke 2006) over six augmentations of each
  training image: sums that sites could send once, and that no algorithm of FedSight sends yet
- `pixels`: the pixels, less the training people's mean face, by cosine

The figure is the true accept rate at 1 % false accepts, at a threshold chosen on other people:
between images as they are, and between those and images that are small, dark, turned or partly
covered (`src/fedsight/data/degraded.py`), the same for all models. Differences are paired by split.
All splits are of the same 40 people, so they are not independent: the 95 % interval of a mean
difference is that of Nadeau and Bengio (2003). Results are written after every
split; `--splits` adds to a file of the same job, and what is in it is not trained again; `--fresh`
begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import RESULTS, example, machine, print_table, write_json
from torch import Tensor
from torch.nn import functional as F

from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.core.intervals import deviation, of_mean
from fedsight.core.rng import generator
from fedsight.core.types import Metrics
from fedsight.data.augment.base import augment
from fedsight.data.degraded import DEGRADATIONS
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.models.gabor import Whiten
from fedsight.models.zoo.face_net import EmbeddingModel
from fedsight.program.config import check, parse
from fedsight.program.federation import Federation, federate
from fedsight.tasks.faces import verification

WAYS = ("federated", "start", "pooled", "alone_best", "closed_form", "pixels")
RATE = "tar_at_0.01"
KINDS = ("degraded", *DEGRADATIONS)
KEYS = (RATE, *(f"{kind}_{RATE}" for kind in KINDS), "auc", "degraded_auc", "eer", "rank_1")
TITLES = ("clean", *KINDS, "AUC", "AUC degraded", "EER", "rank 1")
TESTED, TRAINED = 10, 30  # people in every split
NOTHING = 1e-12  # a learning rate that moves no weight
LOOKS, RIDGE = 6, 0.3  # of the closed form: augmentations of an image, and the ridge within people
Vectors = Callable[[Tensor], Tensor]  # unit vectors [n, d] of pixels [n, c, h, w] in [0, 1]


def job(split: int, rounds: int | None) -> dict[str, Any]:
    """The example's tables with another split of people."""
    tables = example("faces")
    tables["seed"] = split
    tables["data"]["people_seed"] = split
    tables["rounds"] |= {"evaluate_every": 1000}
    if rounds is not None:
        tables["rounds"]["rounds"] = rounds
    return tables


def unlearnt(tables: dict[str, Any]) -> dict[str, Any]:
    """The same without a step of any size."""
    return {**tables, "train": {**tables["train"], "lr": NOTHING, "weight_decay": 0.0}}


def in_one_place(tables: dict[str, Any], sites: int) -> dict[str, Any]:
    """The same with steps of as many images as all sites together take."""
    return {**tables, "train": {**tables["train"], "batch": tables["train"]["batch"] * sites}}


def federation_of(tables: dict[str, Any]) -> Federation:
    """What a run of these tables trains on."""
    program, speed = parse(tables, Path.cwd())
    check(program, speed)
    return federate(program)


def train(federation: Federation) -> dict[str, float]:
    """The figures of a trained model, and how many seconds it took."""
    evaluator = Evaluator(federation)
    engine = InProcessEngine(federation)  # the same bits as with workers, and no start of processes

    def overall(sums: list[Metrics]) -> Any:
        return evaluator.figures(sums).overall

    began = time.perf_counter()
    try:
        trained = run(Session(federation), engine, overall)
    finally:
        engine.close()
    found = figures(federation.program.task.summary(trained.sums[0]))
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def figures(found: dict[str, float]) -> dict[str, float]:
    """Those that are shown, with the bounds that people drawn again and again give."""
    bounds = [f"{name}_{end}" for name in KEYS for end in ("low", "high")]
    return {key: round(found[key], 4) for key in (*KEYS, *bounds) if key in found}


def compared(federation: Federation, vectors: Vectors) -> dict[str, float]:
    """The figures of what makes unit vectors of the test images' pixels."""
    test = federation.dataset.test
    tested, people = test.images.read(torch.arange(len(test))), torch.from_numpy(test.labels)
    plain = vectors(tested)
    sums = {**verification.verify(plain, people, tested), **verification.identify(plain, people)}
    for kind, change in DEGRADATIONS.items():
        probes = vectors(change(tested))
        sums |= verification.probed(kind, verification.verify(plain, people, tested, probes))
    return figures(verification.figures(sums, (0.01,)))


def pixels(federation: Federation) -> dict[str, float]:
    """The pixels less the mean face."""
    train = federation.dataset.train
    mean = train.images.read(torch.arange(len(train))).flatten(1).mean(0)
    return compared(federation, lambda images: F.normalize(images.flatten(1) - mean, dim=1))


@torch.no_grad()
def closed_form(federation: Federation) -> dict[str, float]:
    """The pretrained features, whitened over faces and then within people."""
    program, train = federation.program, federation.dataset.train
    model = program.model
    assert isinstance(model, EmbeddingModel)
    body: Any = federation.network.module.eval().body

    def features(images: Tensor) -> Tensor:
        x = federation.dataset.preprocess.normalise(images)
        return torch.cat([body.features(part) for part in x.split(100)])

    images, people = train.images.read(torch.arange(len(train))), torch.from_numpy(train.labels)
    looks = [
        augment(images, program.train.augment, generator(program.seed, "closed form", look))[0]
        for look in range(LOOKS)
    ]
    seen, people = torch.cat([features(look) for look in looks]), people.repeat(LOOKS)
    white, within = Whiten(seen.shape[1], model.ridge), Whiten(seen.shape[1], RIDGE)
    white(seen)  # in training, the first batch is all of the statistics
    found = white.eval()(seen)
    places = people.unique(return_inverse=True)[1]
    means = torch.stack(
        [found[places == person].mean(0) for person in range(int(places.max()) + 1)]
    )
    within(found - means[places])
    within.eval()

    def vectors(pixels: Tensor) -> Tensor:
        both = [within(white(features(one))) for one in (pixels, pixels.flip(3))]
        return F.normalize(both[0] + both[1], dim=1)

    return compared(federation, vectors)


def measure(split: int, rounds: int | None, known: dict[str, Any]) -> dict[str, Any]:
    """Every way of one split that is not `known`."""
    tables = job(split, rounds)
    federation = federation_of(tables)
    sites = range(len(federation.partition))
    ways: dict[str, Callable[[], Any]] = {
        "federated": lambda: train(federation),
        "start": lambda: train(federation_of(unlearnt(tables))),
        "pooled": lambda: train(federation_of(in_one_place(tables, len(sites))).all_pooled()),
        "alone": lambda: {
            federation.partition.name(site): train(federation.alone(site)) for site in sites
        },
        "closed_form": lambda: closed_form(federation_of(tables)),
        "pixels": lambda: pixels(federation),
    }
    found: dict[str, Any] = {"split": split, "measured": {}, **known}
    for way, made in ways.items():
        if way not in known:
            found["measured"][way] = {"commit": machine()["commit"], "load": os.getloadavg()[0]}
            found[way] = made()
    best = max(found["alone"].values(), key=lambda one: one[f"degraded_{RATE}"])
    return {**found, "alone_best": best}


def summary(found: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over splits, by way and figure."""
    return {
        way: {
            key: {
                "mean": round(fmean(values := [one[way][key] for one in found]), 4),
                "deviation": round(deviation(values), 4) if len(found) > 1 else 0.0,
            }
            for key in KEYS
        }
        for way in WAYS
    }


def differences(found: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The federated figure less that of each other way, split by split, and their mean."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for way in WAYS[1:]:
        told[way] = {}
        for key in KEYS:
            each = [one["federated"][key] - one[way][key] for one in found]
            low, high = of_mean(each, TESTED / TRAINED)
            told[way][key] = {
                "mean": round(fmean(each), 4),
                "interval": [round(low, 4), round(high, 4)] if len(each) > 1 else None,
                "by_split": [round(one, 4) for one in each],
            }
    return told


def show(found: list[dict[str, Any]]) -> None:
    """Both tables."""
    splits = [one["split"] for one in found]
    rows = [
        [way.replace("_", ", "), *(f"{one['mean']:.1%} ± {one['deviation']:.1%}" for one in told)]
        for way, told in ((way, values.values()) for way, values in summary(found).items())
    ]
    rates = f"ORL faces, ten unseen people, splits {splits}: TAR at FAR 1 %, mean ± deviation"
    print_table(rates, ["way", *TITLES], rows)
    rows = []
    for way, values in differences(found).items():
        rows.append([f"less {way.replace('_', ', ')}", *map(_points, values.values())])
    print_table("federated less the others, points, paired by split", ["", *TITLES], rows)


def _points(one: dict[str, Any]) -> str:
    """A difference and its interval, in points."""
    mean, bounds = 100 * one["mean"], one["interval"]
    return f"{mean:+.1f}" + (
        f" ({100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if bounds else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split, two rounds")
    parser.add_argument("--fresh", action="store_true", help="forget what is finished")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or (RESULTS / "faces.json" if not options.quick else Path("faces-quick.json"))
    splits = options.splits[:1] if options.quick else options.splits
    rounds = options.rounds or (2 if options.quick else None)
    facts, known, notes = machine(), {}, {}
    if out.exists() and not (options.fresh or options.quick):
        kept = json.loads(out.read_text())
        if kept["job"] == job(kept["job"]["seed"], rounds):
            known = {one["split"]: one for one in kept["results"]}
            notes = {key: kept[key] for key in ("note",) if key in kept}  # on what is kept
    for split in splits:
        known[split] = measure(split, rounds, known.get(split, {}))
        every = [one for _, one in sorted(known.items())]
        found = [one for one in every if one.keys() >= {*WAYS}]
        write_json(
            out,
            {
                "benchmark": "faces",
                "quick": options.quick,
                "machine": facts,
                **notes,
                "job": job(splits[0], rounds),
                "summary": summary(found),
                "differences": differences(found),
                "results": every,
            },
        )
        print(f"split {split} is measured", flush=True)
    show([known[one] for one in sorted(known)])
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
