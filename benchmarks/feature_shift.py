"""Sites with digits of other sources and other devices: who gains, and what helps.

    python benchmarks/feature_shift.py [--seeds 3] [--quick]

Six sites, each with about a thousand digits of its own in files of its own kind and size:

    mnist      MNIST, 28 x 28, grey
    eight      optical recognition of handwritten digits (UCI), 8 x 8, 17 levels of grey
    colour     MNIST on photographed textures, as the absolute difference (MNIST-M: Ganin et al.
               2016, section 5.2.4), 32 x 32, in colour
    negative   MNIST, dark on light, with little contrast, 16 bits
    blurred    MNIST, out of focus
    noisy      MNIST, in a dark room

No digit is at two sites. Half of each site's images is held out and tests it; 15 % of the others
are set aside, by which each site chooses what it gets at the end. Compared are FedAvg, FedBN, both
on harmonised images, and Ditto, with each site alone (on its images as they are) for as many
passes. `delivered` is what each site chose after Ditto: the model of its own that was held near the
shared one, that model corrected or tuned, or the one that it trained alone. Finished runs in
`--folder` are not repeated. First `fedsight data get mnist-5k` and `fedsight data get digits-8x8`.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, once, print_table, write_json
from PIL import Image

import fedsight
from fedsight.core.draws import draws
from fedsight.data.fetch.cache import fetched
from fedsight.data.shift import Shift

GOALS = {"fedbn minus fedavg, an outside run with three sources": 97.7 - 95.6}
SHIFTS = {
    "negative": Shift(kind="invert", strength=0.7),
    "blurred": Shift(kind="blur", strength=2.0),
    "noisy": Shift(kind="noise", strength=0.35),
}
WIDTH = 32  # of the network
WAYS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedbn": {"algorithm": {"name": "fedbn"}},
    "fedavg, image": {"data": {"harmonise": "image"}},
    "fedavg, histogram": {"data": {"harmonise": "histogram"}},
    "fedavg, site": {"data": {"harmonise": "site"}},
    "fedbn, histogram": {"algorithm": {"name": "fedbn"}, "data": {"harmonise": "histogram"}},
    "ditto": {"algorithm": {"name": "ditto"}},
}
Pixels = np.ndarray[Any, np.dtype[Any]]
COMPARED = "ditto"  # with each site alone, and all pooled
FROM_MNIST = ("mnist", "colour", "negative", "blurred", "noisy")


def table(name: str, file: str) -> tuple[Pixels, Pixels]:
    """Values [n, pixels] and labels [n] of a fetched CSV."""
    with gzip.open(fetched(name) / file, "rt") as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype=np.float64).astype(np.int64)
    return rows[:, :-1], rows[:, -1]


def write(root: Path) -> None:
    """A folder for each site, with one for each digit."""
    values, labels = table("mnist-5k", "mnist_5k.csv.gz")
    digits = values.reshape(-1, 28, 28).astype(np.uint8)
    order = draws(0, "feature shift").permutation(len(digits))
    for place, chosen in enumerate(np.array_split(order, len(FROM_MNIST))):
        site = FROM_MNIST[place]
        for number, index in enumerate(np.sort(chosen).tolist()):
            save(root, site, int(labels[index]), number, seen(site, digits[index], number))
    values, labels = table("digits-8x8", "digits.csv.gz")
    small = (values.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    for number in range(1000):
        save(root, "eight", int(labels[number]), number, small[number])


def seen(site: str, digit: Pixels, number: int) -> Pixels:
    """A digit [28, 28] as the site's device shows it: uint8 or uint16 [h, w] or [h, w, 3]."""
    if site == "mnist":
        return digit
    if site == "colour":
        return on_texture(digit, number)
    pixels = torch.from_numpy(digit).float().div(255)[None, None]
    # the last of two sites has the full strength
    shown: Pixels = SHIFTS[site].apply(pixels, 1, 2, 0, torch.tensor([number]))[0, 0].numpy()
    if site == "negative":
        return (shown * 65535).round().astype(np.uint16)
    return (shown * 255).round().astype(np.uint8)


def on_texture(digit: Pixels, number: int) -> Pixels:
    """|texture - digit| [32, 32, 3], of a texture in a colour of its own."""
    rng = draws(0, "texture", number)
    path = files("fedsight.data").joinpath("samples", "textures.npz")
    with path.open("rb") as stream, np.load(stream) as textures:
        grey = textures[textures.files[number % len(textures.files)]]
    top, left = (rng.between(0, side - 32) for side in grey.shape)
    tint = np.array([0.4 + 0.6 * rng.uniform() for _ in range(3)])
    ground = grey[top : top + 32, left : left + 32, None] * tint
    ink = np.zeros((32, 32, 1))
    ink[2:30, 2:30, 0] = digit
    made: Pixels = np.abs(ground - ink).round().astype(np.uint8)
    return made


def save(root: Path, site: str, label: int, number: int, pixels: Pixels) -> None:
    """Write one image file."""
    folder = root / site / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def program(images: Path, way: str, seed: int, rounds: int) -> dict[str, Any]:
    """The job of one way."""
    own = WAYS[way]
    data = {
        "name": "folder", "path": str(images), "sites_in_path": True, "size": 28, "channels": 3,
        "test_fraction": 0.5, "duplicates": "keep", "near_duplicates": "keep",
        **own.get("data", {}),
    }  # fmt: skip
    return {
        "name": way,
        "seed": seed,
        "data": data,
        "split": {"name": "natural"},
        "model": {"name": "small_cnn", "width": WIDTH, "norm": "batch"},
        "algorithm": own.get("algorithm", {"name": "fedavg"}),
        "train": {"epochs": 2, "batch": 32, "lr": 0.05, "schedule": "cosine"},
        "rounds": {
            "rounds": rounds, "evaluate_every": rounds, "weighting": "uniform", "validation": 0.15,
        },
    }  # fmt: skip


def finished(images: Path, folder: Path, way: str, seed: int, rounds: int) -> fedsight.Run:
    """The run of one way with one seed, COMPARED's with each site alone; it is not repeated. The
    folder's name has what differs between calls: it is not compared with an earlier run's."""
    place = folder / f"{way.replace(', ', '-')}-{seed}-width-{WIDTH}-rounds-{rounds}"
    start = fedsight.compare if way == COMPARED else fedsight.run
    tables = program(images, way, seed, rounds)
    return once(place, lambda: start(tables, out=place, force=True))


def by_site(run: fedsight.Run) -> dict[str, float]:
    """The accuracy of the federation's model, or of the site's part of it, in per cent."""
    return {name: 100 * one["score"] for name, one in run.summary["by_site"].items()}


def seeded(images: Path, folder: Path, seed: int, rounds: int) -> dict[str, Any]:
    """What each way and each site alone reach, by site, with one seed."""
    runs = {way: finished(images, folder, way, seed, rounds) for way in WAYS}
    comparison, summary = runs[COMPARED].comparison, runs[COMPARED].summary
    assert comparison is not None
    alone = {name: 100 * one["own_score"] for name, one in comparison["alone"].items()}
    return {
        "alone": alone,
        "delivered": {name: alone[name] + gain for name, gain in summary["gain_by_site"].items()},
        "pooled": 100 * summary["pooled"],
        "kinds": summary["delivered_by_site"],
        **{way: by_site(run) for way, run in runs.items()},
    }


def told(way: str, found: list[dict[str, Any]]) -> list[str]:
    """A row of the table: means over seeds, and gains over each site alone."""
    names = sorted(found[0]["alone"])
    figures = [statistics.fmean(one[way][name] for one in found) for name in names]
    gains = [one[way][name] - one["alone"][name] for one in found for name in names]
    shown = [f"{value:.1f}" for value in (*figures, statistics.fmean(figures))]
    if way == "alone":
        return [way, *shown, "", ""]
    return [way, *shown, f"{min(gains):+.1f}", f"{sum(gain > 0 for gain in gains)} of {len(gains)}"]


def main() -> None:
    """Run all ways, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="two rounds, one seed")
    parser.add_argument("--folder", type=Path, help="of images and runs; default: one that goes")
    parser.add_argument("--out", type=Path, default=RESULTS / "feature_shift.json")
    given = parser.parse_args()
    seeds, rounds = (1, 2) if given.quick else (given.seeds, given.rounds)
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        images = folder / "images"
        if not images.exists():
            write(images)
        found = [seeded(images, folder, seed, rounds) for seed in range(seeds)]
    ways = ("alone", *WAYS, "delivered")
    columns = ["", *sorted(found[0]["alone"]), "mean", "least gain", "sites above alone"]
    print_table(
        "Accuracy in per cent on each site's own test images",
        columns,
        [told(way, found) for way in ways],
    )
    means = {
        way: statistics.fmean(value for one in found for value in one[way].values()) for way in ways
    }
    print(f"pooled: {statistics.fmean(one['pooled'] for one in found):.1f}; {GOALS}")
    result = {"machine": machine(), "goals": GOALS, "rounds": rounds, "means": means}
    write_json(given.out, {**result, "seeds": found})


if __name__ == "__main__":
    main()
