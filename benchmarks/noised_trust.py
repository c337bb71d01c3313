"""Calibration and sets from sums with noise: what the noise of an epsilon leaves of both.

    python benchmarks/noised_trust.py [--seeds 40] [--folder FOLDER]

The built-in job (`make run`) is trained once; a run in the folder is not repeated. Then, for each
seed, half of its 2,000 test images are ten sites' test images, who send sums with noise, and the
other half shows what comes of these: the expected calibration error without and with the
temperature (where one is made), and the coverage and size of sets. The noise is as large as one
answer may have that costs each site this epsilon (delta 1e-5). For more images than 1,000 the first
half is drawn from with replacement: they stand for the noise that so many would have, and not for
their variety.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, print_table, write_json
from trust import trained

from fedsight.client.memory import MemoryStore
from fedsight.coordinator.store import RunStore
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust import noised
from fedsight.evaluation.trust.answers import Answers, Respondent
from fedsight.evaluation.trust.calibration import calibrated
from fedsight.evaluation.trust.conformal import threshold
from fedsight.evaluation.trust.images import trust_images
from fedsight.evaluation.trust.noised_temperature import Confidence
from fedsight.evaluation.trust.reliability import Reliability, counted
from fedsight.evaluation.trust.scaling import TemperatureScaling
from fedsight.evaluation.trust.sets import Sets
from fedsight.privacy import noised_sums
from fedsight.privacy.accounting import gaussian_sigma
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.program.federation import federate

SITES, DELTA, COVERAGE = 10, 1e-5, 0.9
EPSILONS = (1.0, 3.0, 8.0)
IMAGES = (1000, 2000, 4000, 10000)


def sent(answers: Answers, multiplier: float) -> list[NoisedSums]:
    """What ten sites send that have these images."""
    found, noise = [], noised_sums.deviation(noised.BOUNDS, multiplier)
    for places in torch.arange(len(answers)).tensor_split(SITES):
        exact = noised.counted(answers.some(places), "lac")
        made = noised_sums.noised(exact, noised.BOUNDS, multiplier)
        found.append(NoisedSums(made, noise))
    return found


def ece(tested: Answers, heat: float) -> float:
    """The expected calibration error at a temperature."""
    return Reliability.of(counted(calibrated(tested.logits, heat), tested.labels)).ece


def one(held: Answers, tested: Answers, multiplier: float) -> dict[str, Any]:
    """What comes of one answer of all sites."""
    sites = sent(held, multiplier)
    noise = noised.deviation_of(own.deviation[noised.CONFIDENCE] for own in sites)
    found = Confidence.of(noised.added(sites, noised.CONFIDENCE), noise)
    heat = found.temperature if found.is_known else 1.0
    counts = noised.envelope(noised.added(sites, noised.SCORES), noise)
    limit = threshold(counts, COVERAGE)
    known = limit is not None and limit < 1
    most = torch.full((10,), torch.inf if limit is None or not known else limit)
    shares = calibrated(tested.logits, 1.0)
    sets = Sets("lac", counts[None], {})
    inside = sets.inside(most, shares, tested.logits)
    return {
        "made": found.is_known, "temperature": found.temperature,
        "ece": ece(tested, heat), "ece if always made": ece(tested, found.temperature),
        "sets": known, "size": float(inside.sum(1).double().mean()),
        "coverage": float(inside.gather(1, tested.labels[:, None]).double().mean()),
    }  # fmt: skip


def halves(whole: Answers, seed: int, images: int) -> tuple[Answers, Answers]:
    """So many images from one half, and the other half."""
    made = torch.Generator().manual_seed(seed)
    first, other = torch.randperm(len(whole), generator=made).tensor_split(2)
    if images != len(first):
        first = first[torch.randint(len(first), (images,), generator=made)]
    return whole.some(first), whole.some(other)


def told(whole: Answers, epsilon: float, images: int, seeds: int) -> dict[str, Any]:
    """What the seeds show of so many images at an epsilon."""
    multiplier = gaussian_sigma(epsilon, DELTA) / math.sqrt(2) if epsilon else 1e-6
    both = [halves(whole, seed, images) for seed in range(seeds)]
    runs = [one(held, tested, multiplier) for held, tested in both]
    before = [ece(tested, 1.0) for _, tested in both]
    exact = [
        ece(tested, TemperatureScaling.fitted(held.logits, held.labels).temperature)
        for held, tested in both
    ]
    always = [run["ece if always made"] for run in runs]
    return {
        "epsilon": epsilon or None, "images": images, "figures_noise": multiplier,
        "ece before": statistics.fmean(before), "ece exact": statistics.fmean(exact),
        "ece": statistics.fmean(run["ece"] for run in runs),
        "ece worst": max(run["ece"] for run in runs),
        "made": sum(run["made"] for run in runs) / seeds,
        "worse than before": sum(run["ece"] > was for run, was in zip(runs, before, strict=True)),
        "ece if always made": statistics.fmean(always),
        "worse if always made": sum(a > was for a, was in zip(always, before, strict=True)),
        "sets": sum(run["sets"] for run in runs) / seeds,
        "coverage": statistics.fmean(run["coverage"] for run in runs),
        "size": statistics.fmean(run["size"] for run in runs),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="of the run; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "noised_trust.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place) / "run"
        trained(folder, False)
        store = RunStore(folder)
        program, speed = store.program()
        federation, checkpoint = federate(program), store.load_checkpoint()
        assert checkpoint is not None
        final = Final(federation, speed, checkpoint.model, MemoryStore(store.memory))
        whole = Respondent.of(final, False).answers(trust_images(federation, False).tested)
    rows = [told(whole, epsilon, images, given.seeds)
            for epsilon in (0.0, *EPSILONS) for images in IMAGES]  # fmt: skip
    columns = ["epsilon", "images", "ECE before", "exact", "with noise", "worst", "made", "worse",
               "always made", "worse", "sets made", "coverage", "size"]  # fmt: skip
    print_table(
        f"Sums with noise, {given.seeds} seeds",
        columns,
        [
            ["none" if row["epsilon"] is None else f"{row['epsilon']:g}", str(row["images"]),
             *(f"{100 * row[key]:.1f}" for key in ("ece before", "ece exact", "ece", "ece worst")),
             f"{100 * row['made']:.0f} %", str(row["worse than before"]),
             f"{100 * row['ece if always made']:.1f}", str(row["worse if always made"]),
             f"{100 * row['sets']:.0f} %", f"{row['coverage']:.3f}", f"{row['size']:.2f}"]
            for row in rows
        ],
    )  # fmt: skip
    write_json(given.out, {"machine": machine(), "seeds": given.seeds, "rows": rows})


if __name__ == "__main__":
    main()
