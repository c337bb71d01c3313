"""Contestant: the federations that GPU figures are published of, and bare loops beside them.

    python gpu_shapes.py '{"shape": "cifar", "who": "fedsight", "device": "cuda", "quick": false}'

Images are noise: only speed is measured. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from stopwatch import Stopwatch
from torch import nn
from torch.nn import functional as F

from fedsight.algorithms.base import algorithms
from fedsight.coordinator.store import RunStore
from fedsight.data.base import Dataset, Preprocess, Source, sources
from fedsight.data.numbered import array_part
from fedsight.data.partition import splits
from fedsight.data.shift import Shift
from fedsight.models.base import Model, models
from fedsight.program.program import Program, Speed
from fedsight.program.rounds import Rounds
from fedsight.program.train import Train
from fedsight.runs import lifecycle
from fedsight.tasks.base import tasks

WARM_UP = 2  # rounds that are not counted


@sources.add("benchmark-noise")
class Noise(Source):
    """Random images of a size, in random classes."""

    images: int = 1000
    channels: int = 3
    side: int = 32
    classes: int = 10

    def open(self) -> Dataset:
        """Draw them."""
        draws = np.random.default_rng(1)
        size = (self.images + 2 * self.classes, self.side, self.side, self.channels)
        pixels = draws.integers(0, 256, size, dtype=np.uint8)
        labels = np.arange(len(pixels)) % self.classes
        train = array_part(pixels[: self.images], labels[: self.images], "noise/train")
        test = array_part(pixels[self.images :], labels[self.images :], "noise/test")
        classes = tuple(f"class {number:02d}" for number in range(self.classes))
        usual = (0.5,) * self.channels, (0.25,) * self.channels
        return Dataset(
            train, test, classes, Preprocess(self.channels, self.side, self.side, "stretch", *usual)
        )


@models.add("benchmark-cnn", source="Reddi et al. 2021, table 4; pfl-research's and FLUTE's CNN")
class ReddiCNN(Model):
    """Two 3x3 convolutions, one pooling, 128 units, and the paper's dropout."""

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """Takes images of any size from six pixels on."""
        module = cnn(channels, height, classes)
        return module, ["9"]


def cnn(channels: int, side: int, classes: int) -> nn.Sequential:
    """The bare module."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * ((side - 4) // 2) ** 2, 128),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(128, classes),
    )


@dataclass(frozen=True)
class Shape:
    """A federation: its images, its clients, and its rounds."""

    channels: int
    side: int
    classes: int
    clients: int
    images: int  # of a client
    cohort: int
    batch: int
    lr: float
    rounds: int  # counted ones
    model: dict[str, Any]

    @property
    def pool(self) -> int:
        """Distinct images: those of all clients, up to what memory should hold."""
        return min(self.clients * self.images, 50_000 if self.side < 100 else 2_000)


CNN = {"name": "benchmark-cnn"}
RESNET = {"name": "torchvision", "architecture": "resnet18", "norm": "batch"}
# pfl-research's CIFAR-10 (Granqvist et al. 2024), FLUTE's FEMNIST (Dimitriadis et al. 2022,
# table 2: 3,400 clients with some 200 images each), and a fine-tuning hospital.
SHAPES = {
    "cifar": Shape(3, 32, 10, 1000, 50, 50, 10, 0.1, 40, CNN),
    "femnist": Shape(1, 28, 62, 3400, 200, 10, 20, 0.1, 60, CNN),
    "resnet": Shape(3, 224, 10, 4, 2048, 4, 64, 0.01, 2, RESNET),
}
QUICK = {
    "cifar": Shape(3, 32, 10, 20, 10, 4, 5, 0.1, 2, CNN),
    "femnist": Shape(1, 28, 62, 20, 20, 2, 10, 0.1, 2, CNN),
    "resnet": Shape(3, 64, 10, 2, 8, 2, 4, 0.01, 1, RESNET),
}


def fedsight(shape: Shape, given: dict[str, Any]) -> dict[str, Any]:
    """FedSight as users run it, with its history and checkpoints."""
    rounds = WARM_UP + shape.rounds + 1  # the last one is evaluated
    program = Program(
        name="gpu",
        seed=1,
        data=Noise(
            images=shape.pool, channels=shape.channels, side=shape.side, classes=shape.classes
        ),
        split=splits.get("virtual")(sites=shape.clients, samples=shape.images),
        shift=Shift(),
        model=models.get(shape.model["name"])(
            **{key: value for key, value in shape.model.items() if key != "name"}
        ),
        task=tasks.get("classify")(),
        algorithm=algorithms.get("fedavg")(),
        train=Train(epochs=1, batch=shape.batch, lr=shape.lr),
        rounds=Rounds(rounds=rounds, cohort=shape.cohort, evaluate_every=rounds),
    )
    watch, speed = Stopwatch(), Speed(device=given["device"], **given.get("speed", {}))
    with tempfile.TemporaryDirectory() as folder:
        lifecycle.start(lifecycle.Start(program, speed, RunStore(Path(folder)), "run"), [watch])
    stamps = watch.stamps[1:-1]  # the first pair holds the start of the workers
    return {"seconds_by_round": [b - a for a, b in pairwise(stamps)]}


def bare(shape: Shape, given: dict[str, Any]) -> dict[str, Any]:
    """The same steps in one loop of PyTorch: images on the device, mixed precision if asked."""
    device = torch.device(given["device"])
    if shape.model is CNN:
        network: nn.Module = cnn(shape.channels, shape.side, shape.classes)
    else:
        import torchvision

        network = torchvision.models.resnet18(num_classes=shape.classes)
    network = network.to(device, memory_format=torch.channels_last).train()
    mixed = given.get("speed", {}).get("precision") == "bfloat16"
    size = (shape.images, shape.channels, shape.side, shape.side)
    x = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(shape.images, device=device) % shape.classes
    seconds = []
    for _ in range(WARM_UP + shape.rounds):
        begun = time.perf_counter()
        for _ in range(shape.cohort):
            optimizer = torch.optim.SGD(network.parameters(), lr=shape.lr, fused=True)
            for at in torch.randperm(shape.images, device=device).split(shape.batch):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    loss = F.cross_entropy(network(x[at]), y[at])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return {"seconds_by_round": seconds[1:]}


def pfl(shape: Shape, given: dict[str, Any]) -> dict[str, Any]:
    """pfl-research's simulation on the same device."""
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu" if given["device"] == "cpu" else "cuda"
    from gpu_pfl import rounds

    size = (shape.pool, shape.channels, shape.side, shape.side)
    x, y = torch.randn(size), torch.arange(shape.pool) % shape.classes
    clients = [
        (x[at : at + shape.images], y[at : at + shape.images])
        for client in range(shape.clients)
        for at in [client * shape.images % (shape.pool - shape.images + 1)]
    ]
    network = cnn(shape.channels, shape.side, shape.classes)
    stamps = rounds(network, clients, shape, WARM_UP + shape.rounds)
    return {"seconds_by_round": [b - a for a, b in pairwise(stamps)][1:]}


def main() -> None:
    given = json.loads(sys.argv[1])
    shape = (QUICK if given["quick"] else SHAPES)[given["shape"]]
    torch.set_num_threads(1)
    found = {"fedsight": fedsight, "bare": bare, "pfl": pfl}[given["who"]](shape, given)
    rounds = found["seconds_by_round"][WARM_UP - 1 :]
    per_round = median(rounds)
    print(
        "\n"
        + json.dumps(
            {
                **found,
                "seconds_a_round": round(per_round, 5),
                "clients_per_second": round(shape.cohort / per_round, 2),
                "images_per_second": round(shape.cohort * shape.images / per_round, 1),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
