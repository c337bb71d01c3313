"""Whether explanations are true of the model, and what they cost.

    python benchmarks/explanations.py [--quick] [--folder FOLDER]

Three runs are trained: the built-in job (garments), `faces` (people, fetched by `fedsight data get
orl-faces`, with `face_net`) and `scenes` (boxes). On 100 test images of each, every method's
deletion and insertion are compared with those of regions at random and of edges on the same images,
with 95 % intervals, and its explanations with those of the same network with shuffled weights. Then
the time is taken for 100 images: by every method with the small CNN, exactly as `fedsight explain`
does it, and by Grad-CAM with EfficientNet-Lite0 at 96 pixels, with random weights, which take the
same time. A run in the folder is not repeated. Times are only worth something on a machine that
does nothing else; `load` in the result says whether it did.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, example, machine, others, print_table, write_json

import fedsight
from fedsight.coordinator.store import RunStore
from fedsight.evaluation.explanations.faithfulness import curves, ranked
from fedsight.evaluation.explanations.measure import measured
from fedsight.evaluation.explanations.methods import Network, chosen, heat_of
from fedsight.evaluation.explanations.scores import scored
from fedsight.evaluation.explanations.subjects import subjects
from fedsight.inference.explain import Asked, network_of
from fedsight.inference.saved import load
from fedsight.models.base import models
from fedsight.program.federation import federate
from fedsight.tasks.base import tasks

JOBS = {"classification": "fashion", "faces": "faces", "detection": "scenes"}
# Faces are compared by the small network, whose fixed filters shuffled weights leave as they are.
OTHERWISE: dict[str, dict[str, Any]] = {
    "faces": {
        "data": {"name": "orl-faces"},
        "model": {"name": "face_net"},
        "task": {"name": "faces", "margin": 0.5, "scale": 4.0},
        "train": {
            "batch": 10, "lr": 0.02, "momentum": 0.9, "schedule": "cosine", "augment": ["flip"],
        },
        "rounds": {"rounds": 5},
        "trust": {},
    }
}  # fmt: skip
TOGETHER = 10  # images that are explained at once where the time is taken
GOALS = {
    "deletion and insertion of the best method": "better than random on the same images",
    "100 images, small CNN, every method": 30.0, "100 images, EfficientNet-Lite0, Grad-CAM": 5.0,
}  # fmt: skip


def trained(folder: Path, job: str, quick: bool) -> Path:
    """The folder of a finished run."""
    if not (folder / job / "summary.json").is_file():
        table = example(job) | OTHERWISE.get(job, {})
        if quick:
            table["rounds"]["rounds"] = min(4, table["rounds"]["rounds"])
        fedsight.run(table, out=folder / job)
    return folder / job


def faithfulness(run: Path, images: int) -> dict[str, Any]:
    """The figures of each method, and which is the best."""
    federation = federate(RunStore(run).program()[0])
    found = measured(federation, network_of(load(run), Asked()), None, images)
    del found["samples"]
    ranks = {
        name: told["insertion"]["mean"] - told["deletion"]["mean"]
        for name, told in found["methods"].items()
    }
    best = max(ranks, key=lambda name: ranks[name])
    apart = all(told["low"] > 0 for told in found["methods"][best]["gains"]["random"].values())
    return {**found, "best": best, "apart from random": apart}


def small_cnn(run: Path, images: int) -> dict[str, float]:
    """Seconds for so many images by each method, with what says how far to believe them."""
    network = network_of(load(run), Asked())
    found = subjects(federate(RunStore(run).program()[0]), network.scored, images)
    x, about = torch.stack([one.x for one in found]), torch.stack([one.given for one in found])
    return {name: timed(network, name, x, about) for name in chosen(network, None, x[:1])}


def efficientnet(images: int) -> float:
    """Seconds for so many images by Grad-CAM."""
    model = models.get("timm").model_validate({"architecture": "tf_efficientnet_lite0"})
    built = model.build(3, 96, 96, 10, 0)
    network = Network(scored(tasks.get("classify")(), built.module.eval()), built.head)
    x = torch.rand(images, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return timed(network, "grad-cam", x, torch.zeros(images, 1), False)


def timed(
    network: Network, name: str, x: torch.Tensor, about: torch.Tensor, judged: bool = True
) -> float:
    """Seconds for all images, a few at a time."""
    heat_of(network, name, x[:1], about[:1])  # Captum is imported
    began = time.perf_counter()
    for some, of in zip(x.split(TOGETHER), about.split(TOGETHER), strict=True):
        heat = heat_of(network, name, some, of)
        if judged:
            curves(network.scored, some, of, ranked(heat))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four rounds, twenty images")
    parser.add_argument("--folder", type=Path, help="of the runs; default: one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "explanations.json")
    given = parser.parse_args()
    images = 20 if given.quick else 100
    busy = others()
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        runs = {kind: trained(folder, job, given.quick) for kind, job in JOBS.items()}
        found = {kind: faithfulness(run, images) for kind, run in runs.items()}
        each = small_cnn(runs["classification"], images)
    cost = {"images": images, "threads": torch.get_num_threads(), "busy cores of others": busy}
    lite = efficientnet(images)
    times = {**cost, "small CNN": each, "small CNN, all": sum(each.values()), "Lite0": lite}
    rows = []
    for kind, told in found.items():
        for name, one in {**told["methods"], **told["baselines"]}.items():
            bounds = [
                "–"
                if one.get(key, {}).get("low") is None
                else "{mean:.3f} ({low:.3f} to {high:.3f})".format(**one[key])
                for key in ("deletion", "insertion", "shuffled")
            ]
            rows.append([kind, name, *bounds, one.get("result", "–")])
    columns = ["task", "method", "deletion", "insertion", "shuffled", "result"]
    print_table(f"Explanations of {images} test images, with 95 % intervals", columns, rows)
    print({kind: (told["best"], told["apart from random"]) for kind, told in found.items()})
    print(f"seconds {times}; asked {GOALS}")
    write_json(given.out, {"machine": machine(), "goals": GOALS, "time": times, "tasks": found})


if __name__ == "__main__":
    main()
