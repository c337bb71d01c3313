"""Closed-form heads beside each other: accuracy, what a site sends, and what noise takes from it.

    fedsight data get efficientnet-lite0
    fedsight data get fashion-mnist
    python benchmarks/closed_form.py [--quick]

The features of EfficientNet-Lite0 of the built-in Fashion-MNIST images, enlarged to 96 pixels, are
computed once and kept in `--cache`; then they take the place of the images, so each way takes
seconds and goes through the same round as any other run. "Several scales" are what a head sees with
`model.taps`: the outputs of four inner layers. Ten sites hold the 10,000 training images
(Dirichlet 0.1), or one site all of them: where each site adds noise, the sum of ten has sqrt(10)
times as much. Seeds change the random features, the noise and the split. Accuracy is that on the
2,000 built-in test images, in parentheses its standard deviation over three seeds, and on all
10,000 of Fashion-MNIST, of which they are a part. The one constant of the
noised form was chosen on 2,000 of the training images (`noised_form.SHARE`). On one busy core it
takes a quarter of an hour, of which four minutes are the features.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar, Literal

import torch
from common import RESULTS, machine, print_table, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedsight.coordinator.loop import run
from fedsight.coordinator.session import Session
from fedsight.data.base import ArrayImages, Dataset, Part, Preprocess, Source
from fedsight.engines.in_process import InProcessEngine
from fedsight.evaluation.figures import Evaluator
from fedsight.models.base import Model
from fedsight.models.features import features
from fedsight.models.taps import pooled
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.site_data import SiteData

TOP = 6.0  # of features after ReLU6
IMAGES: dict[str, Any] = {
    "data": {"name": "fashion-mnist-12k", "size": 96, "channels": 3},
    "model": {
        "name": "timm",
        "architecture": "tf_efficientnet_lite0",
        "weights": "efficientnet-lite0",
    },
    "split": {"name": "iid", "sites": 1},
    "algorithm": {"name": "ridge"},
    "rounds": {"rounds": 1},
}
PRIVATE = {"algorithm": {"name": "ridge", "clip": 1.0}, "model": {"lift": 256}}
SCALES = "ridge on several scales"
TAPS = ("blocks.2", "blocks.3", "blocks.4", "blocks.5")
RANGE = (-30.0, 55.0)  # of their outputs, as in the guide to closed-form heads
WAYS: dict[str, dict[str, Any]] = {
    "ncm": {"algorithm": {"name": "ncm", "high": 1.0}},
    "ridge": {"algorithm": {"name": "ridge", "high": 1.0}},
    "ridge, strength by 10 % held out": {
        "algorithm": {"name": "ridge", "high": 1.0, "held_out": 0.1}
    },
    "ridge, 2048 random features (ReLU)": {
        "algorithm": {"name": "ridge"},
        "model": {"lift": 2048, "lift_by": "relu"},
    },
    SCALES: {"algorithm": {"name": "ridge", "high": 1.0, "bits": 14}},
    "256 directions, clip, ridge": PRIVATE,
    **{
        f"256 directions, clip, ridge, epsilon {epsilon}": {
            **PRIVATE,
            "privacy": {"name": "example", "epsilon": float(epsilon), "delta": 1e-5},
        }
        for epsilon in (8, 3, 1)
    },
    **{
        f"256 directions, clip, ncm, epsilon {epsilon}": {
            **PRIVATE,
            "algorithm": {"name": "ncm", "clip": 1.0},
            "privacy": {"name": "example", "epsilon": float(epsilon), "delta": 1e-5},
        }
        for epsilon in (8, 3, 1)
    },
}


class Features(Source):
    """Features in place of images, a row of numbers from 0 to 1 each."""

    known: ClassVar[dict[str, Tensor]] = {}
    kind: Literal["last", "scales"] = "last"

    def open(self) -> Dataset:
        """Training and test part."""
        train, test = (
            Part(
                ArrayImages(self.known[f"{name}.{self.kind}"], name),
                self.known[f"{name}.y"].numpy(),
            )
            for name in ("train", "test")
        )
        size = Preprocess(1, 1, self.known[f"train.{self.kind}"].shape[3], mean=(0.0,), std=(1.0,))
        return Dataset(train, test, tuple(map(str, range(10))), size)


class Head(Model):
    """Nothing but a head."""

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """One linear layer."""
        network = nn.Sequential()
        network.add_module("flat", nn.Flatten())
        network.add_module("head", nn.Linear(channels * height * width, classes))
        return network, ["head"]


def computed() -> dict[str, Tensor]:
    """Features [n, 1, 1, d] of both kinds and labels [n], of all parts."""
    whole = IMAGES | {"data": IMAGES["data"] | {"name": "fashion-mnist"}}
    found: dict[str, Tensor] = {}
    for tables, parts in ((IMAGES, ("train", "test")), (whole, ("all",))):
        of = federate(parse(tables, base=Path.cwd())[0])
        of.layout.bind(of.network.module, of.initial.clone())
        of.network.module.eval()
        for name in parts:
            data = of.all_pooled().client(0) if name == "train" else of.tested(of.views[0])
            last, scales, labels = seen(of, data)
            low, high = RANGE
            found |= {
                f"{name}.last": (last / TOP).clamp(0, 1)[:, None, None].contiguous(),
                f"{name}.scales": ((scales - low) / (high - low)).clamp(0, 1)[:, None, None],
                f"{name}.y": labels,
            }
    return found


def seen(of: Federation, data: SiteData) -> tuple[Tensor, Tensor, Tensor]:
    """The last features [n, d] of images, what `model.taps` makes of TAPS [n, e], labels [n]."""
    kept: dict[str, Tensor] = {}
    hooks = [
        of.network.module.get_submodule(layer).register_forward_hook(
            lambda _, given, answer, layer=layer: kept.update({layer: answer})
        )
        for layer in TAPS
    ]
    batches = (of.batch(data, positions) for positions in torch.arange(len(data)).split(32))
    rows = []
    with torch.no_grad():
        for x, y in features(of.network, batches):
            scales = torch.cat([pooled(one) for one in kept.values()], 1)
            rows.append((x, scales[: len(x)], y))
    for hook in hooks:
        hook.remove()
    last, scales, labels = (torch.cat(part) for part in zip(*rows, strict=True))
    return last, scales, labels


def measure(way: str, sites: int, seed: int) -> dict[str, Any]:
    """One run: its accuracy and what a site sent."""
    began = time.perf_counter()
    changed = WAYS[way]
    split = {"name": "dirichlet", "sites": sites, "alpha": 0.1} if sites > 1 else IMAGES["split"]
    tables = {
        "seed": seed,
        "data": {"name": "fashion-mnist-12k"},
        "model": {"name": "small_cnn"},
        "split": split,
        "rounds": {"rounds": 1},
        **{key: value for key, value in changed.items() if key != "model"},
    }
    program, _ = parse(tables, base=Path.cwd())
    data = Features(kind="scales" if way == SCALES else "last")
    program = replace(program, data=data, model=Head(**changed.get("model", {})))
    if problems := program.check():
        raise SystemExit(f"{way}: {problems[0].cause}")
    of = federate(program)
    engine, evaluator = InProcessEngine(of), Evaluator(of)
    found = run(Session(of), engine, lambda sums: evaluator.figures(sums).overall)
    engine.close()
    of.layout.bind(of.network.module.eval(), found.vector.clone())
    with torch.no_grad():
        scores = of.network.module(Features.known[f"all.{data.kind}"])
    right = scores.argmax(1) == Features.known["all.y"]
    return {
        "way": way,
        "sites": sites,
        "seed": seed,
        "accuracy": evaluator.figures(found.sums).overall["accuracy"],
        "accuracy_10000": round(right.double().mean().item(), 4),
        "epsilon": Session(of).protection.epsilon(1),
        "bytes_of_a_site": sum(spec.bytes for spec in of.parts.values()),
        "seconds": round(time.perf_counter() - began, 1),
    }


def summarised(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over the seeds, by way and number of sites."""
    rows = []
    for way, sites in dict.fromkeys((one["way"], one["sites"]) for one in found):
        mine = [one for one in found if (one["way"], one["sites"]) == (way, sites)]
        values = [one["accuracy"] for one in mine]
        rows.append(
            {
                "way": way,
                "sites": sites,
                "accuracy": round(mean(values), 4),
                "deviation": round(stdev(values), 4) if len(values) > 1 else None,
                "accuracy_10000": round(mean(one["accuracy_10000"] for one in mine), 4),
                "bytes_of_a_site": mine[0]["bytes_of_a_site"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cache = Path(tempfile.gettempdir()) / "fedsight-lite0-features.safetensors"
    parser.add_argument("--cache", type=Path, default=cache, help="where features are kept")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path, default=RESULTS / "closed_form.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.cache.exists():
        save_file(computed(), options.cache)
    Features.known.update(load_file(options.cache))
    found = []
    for way in options.ways:
        for sites in (1, 10):
            # Without noise one seed is enough: nothing but the random features follows it.
            drawn = way.startswith("256") and not options.quick
            for seed in options.seeds if drawn else options.seeds[:1]:
                found.append(measure(way, sites, seed))
                print(found[-1], flush=True)
        content = {"benchmark": "closed_form", "quick": options.quick, "machine": machine()}
        summary = summarised(found)
        write_json(options.out, {**content, "ways": WAYS, "summary": summary, "results": found})
    rows = [
        [
            one["way"],
            str(one["sites"]),
            f"{one['accuracy']:.1%}" + (f" ({one['deviation']:.1%})" if one["deviation"] else ""),
            f"{one['accuracy_10000']:.1%}",
            f"{one['bytes_of_a_site'] / 1e6:.2f} MB",
        ]
        for one in summary
    ]
    heads = ["way", "sites", "2,000 test images", "all 10,000", "a site sends"]
    print_table("Closed-form heads on EfficientNet-Lite0 features of Fashion-MNIST", heads, rows)


if __name__ == "__main__":
    main()
