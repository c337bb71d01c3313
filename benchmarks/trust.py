"""How far the main job's answers can be trusted: confidence, prediction sets, unlike images.

    python benchmarks/trust.py [--quick] [--folder FOLDER]

The built-in job (`make run`: ten sites, Dirichlet 0.3), seed 0, is trained once, and once with all
images pooled on the same budget. Then everything follows from their scores: the calibration error
on the test part; over 100 splits of it into 1,000 and 1,000 images the coverage and size of the
sets of LAC, APS and RAPS; each site's own sets over draws in its label mix; and how well digits,
noise and pictures upside down are told from garments. A run in the folder is not repeated. Digits
are fetched (`fedsight data get mnist-5k`).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, example, machine, print_table, write_json
from torch import Tensor

import fedsight
from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.data.base import ArrayImages, Part
from fedsight.data.fetch.cache import fetch
from fedsight.evaluation.baselines import POOLED, training
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.answers import Answers, Respondent
from fedsight.evaluation.trust.calibration import best_temperature, losses
from fedsight.evaluation.trust.conformal import covered
from fedsight.evaluation.trust.images import learnt_from, trust_images
from fedsight.evaluation.trust.measure import trusted
from fedsight.evaluation.trust.reliability import Reliability, counted
from fedsight.evaluation.trust.sets import Sets
from fedsight.evaluation.trust.unlike import FeatureSums, energy
from fedsight.program.budget import spent
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Speed

METHODS, COVERAGE = ("lac", "aps", "raps"), 0.9
OWN, DRAWS = 100, 100  # images that a site's own sets come from, and how often they are drawn
GOALS = {
    "ece": 0.02, "mean coverage": (0.897, 0.915), "single splits of 100 within 0.86 to 0.94": 97,
    "LAC against pooled": 1.05, "per site, mean": 0.89, "AUROC digits": 0.95,
}  # fmt: skip


def trained(folder: Path, quick: bool) -> fedsight.Run:
    """The federated run."""
    if (folder / "summary.json").is_file():
        return fedsight.load(folder)
    table = example("fashion")
    if quick:
        table["rounds"]["rounds"] = 2
    return fedsight.run(table, out=folder)


def pooled(federation: Federation, folder: Path, speed: Speed) -> Tensor:
    """The model [size] of all images in one place, on the same budget; kept beside the run."""
    path = folder / "pooled-model.pt"
    if not path.is_file():
        budget = spent(federation, RunStore(folder).history())
        with training(federation.all_pooled(budget), POOLED, speed, []) as (found, _):
            torch.save(found.travelling, path)
    kept: Tensor = torch.load(path)
    return kept


def shares(answers: Answers, temperature: float) -> Tensor:
    """Calibrated probabilities [n, classes]."""
    return torch.softmax(answers.logits.double() / temperature, 1)


def split_sets(tested: Answers, temperature: float, splits: int) -> dict[str, Any]:
    """Coverage and size by method over splits of the test images into halves."""
    found, half = {}, len(tested) // 2
    bounds = covered(half, COVERAGE, half)
    every, draws = shares(tested, temperature), torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(tested), generator=draws) for _ in range(splits)]
    for method in METHODS:
        cover, size = [], []
        for order in orders:
            held, rest = order[:half], order[half:]
            counts = Sets.counted(method, every[held], tested.labels[held], tested.logits[held])
            sets = Sets(method, counts, {})
            inside = sets.inside(sets.limits("mixture", COVERAGE), every[rest], tested.logits[rest])
            right = inside.gather(1, tested.labels[rest, None])
            cover.append(float(right.double().mean()))
            size.append(float(inside.sum(1).double().mean()))
        found[method] = {
            "coverage": statistics.fmean(cover), "lowest": min(cover), "highest": max(cover),
            "within 0.86 to 0.94": sum(0.86 <= one <= 0.94 for one in cover),
            "within beta-binomial 95 %": sum(bounds[0] <= one <= bounds[1] for one in cover),
            "size": statistics.fmean(size),
        }  # fmt: skip
    return found


def own_sets(federation: Federation, tested: Answers, temperature: float) -> dict[str, Any]:
    """Each site's own sets: OWN images in its label mix give the threshold, others in the same mix
    are tested. By site: the mean coverage and how many of the draws are within the law's 95 %, of
    which fewer are than of independent images: both draw again from the same thousand."""
    every, labels = shares(tested, temperature), tested.labels.numpy()
    draws, found = torch.Generator().manual_seed(0), {}
    for site in range(len(federation.partition)):
        counts = federation.dataset.train.counts(10, federation.partition.indices(site))
        cover = []
        for _ in range(DRAWS):
            order = torch.randperm(len(labels), generator=draws)
            weight = torch.from_numpy(counts[labels[order]] / np.bincount(labels)[labels[order]])
            half = len(order) // 2  # with replacement, from halves that share no image
            held = order[:half][weight[:half].multinomial(OWN, True, generator=draws)]
            rest = order[half:][weight[half:].multinomial(10 * OWN, True, generator=draws)]
            mine = Sets.counted("lac", every[held], tested.labels[held], tested.logits[held])
            sets = Sets("lac", mine, {})
            inside = sets.inside(sets.limits("mixture", COVERAGE), every[rest], tested.logits[rest])
            cover.append(float(inside.gather(1, tested.labels[rest, None]).double().mean()))
        low, high = covered(OWN, COVERAGE, 10 * OWN)
        found[federation.partition.name(site)] = {
            "coverage": statistics.fmean(cover),
            "within beta-binomial 95 %": sum(low <= one <= high for one in cover),
        }
    return found


def auroc(known: Tensor, strange: Tensor) -> float:
    """The probability that a strange image has the higher score; ties count half."""
    both = torch.cat([known, strange]).double().numpy()
    _, place, times = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place][len(known) :]
    n, m = len(known), len(strange)
    return float((ranks.sum() - m * (m + 1) / 2) / (n * m))


def digits() -> Tensor:
    """Handwritten digits [1000, 1, 28, 28], 0 to 1."""
    path = fetch("mnist-5k", print) / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.array([row[:784] for row in csv.reader(file)][::5], dtype=np.float32)
    return torch.from_numpy(rows.reshape(-1, 1, 28, 28) / 255)


def unlike(federation: Federation, asked: Respondent, tested: Answers) -> dict[str, Any]:
    """AUROC of both scores against three kinds of strangers."""
    learnt = asked.answers([learnt_from(federation)], features=True)
    fitted = FeatureSums.of(learnt.features, learnt.labels, 10).fitted()
    garments = federation.dataset.test.images.read(torch.arange(1000))
    noise = torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = {}
    kinds = {"digits": digits(), "noise": noise, "garments upside down": garments.flip(2)}
    for name, pixels in kinds.items():
        part = Part(
            ArrayImages((pixels * 255).round().to(torch.uint8), name),
            np.zeros(len(pixels), np.int64),
        )
        other = replace(federation, dataset=replace(federation.dataset, test=part)).viewed()
        strange = asked.answers([other.tested(other.views[0])], features=True)
        found[name] = {
            "distance": auroc(fitted.scores(tested.features), fitted.scores(strange.features)),
            "energy": auroc(energy(tested.logits), energy(strange.logits)),
        }
    return found


def model(final: Final, splits: int) -> dict[str, Any]:
    """What one model's scores give."""
    federation, asked = final.federation, Respondent.of(final, False)
    images = trust_images(federation, False)
    fitted, tested = asked.answers(images.fitted), asked.answers(images.tested, features=True)
    heat = best_temperature(lambda heats: losses(fitted.logits, fitted.labels, heats))
    before = Reliability.of(counted(shares(tested, 1.0), tested.labels))
    after = Reliability.of(counted(shares(tested, heat), tested.labels))
    return {
        "temperature": heat, "ece_before": before.ece, "ece": after.ece, "naive": after.naive,
        "ece_interval": list(after.interval(0)),
        "accuracy": float((tested.logits.argmax(1) == tested.labels).double().mean()),
        "sets": split_sets(tested, heat, splits),
        "own": own_sets(federation, tested, heat),
        "unlike": unlike(federation, asked, tested),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds, ten splits")
    parser.add_argument("--folder", type=Path, help="of the run; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "trust.json")
    given = parser.parse_args()
    splits = 10 if given.quick else 100
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place) / "run"
        run = trained(folder, given.quick)
        store = RunStore(folder)
        program, speed = store.program()
        federation = federate(program)
        checkpoint = store.load_checkpoint()
        assert checkpoint is not None
        memory = MemoryStore(store.memory)
        final = Final(federation, speed, checkpoint.model, memory)
        began = time.process_time()  # of this process, whatever else the machine does
        trusted(final, True)
        seconds = time.process_time() - began
        found = {"federated": model(final, splits)}
        other = Final(federation, speed, pooled(federation, folder, speed), memory)
        found["pooled"] = model(other, splits)
        rounds = run.summary["seconds"] * speed.processes
    share = {"processor seconds": seconds, "of the rounds' at most": seconds / rounds}
    columns = ["model", "method", "mean coverage", "lowest", "highest", "0.86 to 0.94", "mean size"]
    rows = [
        [name, method, *(f"{one[key]:.3f}" for key in ("coverage", "lowest", "highest")),
         str(one["within 0.86 to 0.94"]), f"{one['size']:.3f}"]
        for name, told in found.items()
        for method, one in told["sets"].items()
    ]  # fmt: skip
    print_table(f"Sets over {splits} splits of the test part", columns, rows)
    for name, told in found.items():
        own = [one["coverage"] for one in told["own"].values()]
        print(
            f"{name}: ECE {told['ece_before']:.4f} -> {told['ece']:.4f} at a temperature of "
            f"{told['temperature']:.3f}; own sets {min(own):.3f} to {max(own):.3f}; "
            f"AUROC {told['unlike']}"
        )
    ratio = {
        method: found["federated"]["sets"][method]["size"] / found["pooled"]["sets"][method]["size"]
        for method in METHODS
    }
    print(f"sizes against pooled {ratio}; time {share}; asked {GOALS}")
    result = {"machine": machine(), "goals": GOALS, "splits": splits, "time": share}
    write_json(given.out, {**result, "size_ratio": ratio, "models": found})


if __name__ == "__main__":
    main()
