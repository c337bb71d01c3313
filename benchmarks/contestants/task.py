"""What all contestants train: the same network, the same clients, the same local steps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
JOB = "FEDSIGHT_BENCHMARK_JOB"  # environment variable: the job, for processes that peers start


@dataclass(frozen=True)
class Job:
    """One measurement: `rounds` rounds of `cohort` clients, an epoch of `images` images each."""

    model: str
    data: str  # .npz: train_images float32 [n, 1, h, w], train_labels int64, and test_ likewise
    rounds: int
    cohort: int
    population: int = 160  # clients to draw the cohort from
    images: int = 60
    batch: int = 10
    lr: float = 0.05
    seed: int = 1
    client: str = "tuned"  # how a peer's client is written, where there is a choice

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def given(cls) -> Job:
        """The job from the command line."""
        return cls(**json.loads(sys.argv[1]))

    @classmethod
    def given_by_environment(cls) -> Job:
        """The job, in a process that a peer started."""
        return cls(**json.loads(os.environ[JOB]))

    @property
    def images_per_round(self) -> int:
        """Images that a round trains on."""
        return self.cohort * self.images

    def network(self) -> nn.Module:
        """FedSight's own network of that name: float32, channels-last."""
        from fedsight.models.base import models

        network = models.get(self.model)().build(1, 28, 28, CLASSES, self.seed)
        return network.module.to(memory_format=torch.channels_last)

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Normalised images [n, c, h, w], channels-last, and labels [n] of `train` or `test`."""
        with np.load(self.data) as arrays:
            images, labels = (torch.from_numpy(arrays[f"{name}_{k}"]) for k in ("images", "labels"))
        return images.contiguous(memory_format=torch.channels_last), labels

    def clients(self) -> list[tuple[Tensor, Tensor]]:
        """Each client's images and labels: the next ones that nobody has; views of one array."""
        images, labels = self.part("train")
        shares = (slice(i * self.images, (i + 1) * self.images) for i in range(self.population))
        return [(images[share], labels[share]) for share in shares]

    def batches(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch over a client's images, shuffled."""
        for positions in torch.randperm(len(y)).split(self.batch):
            yield x[positions], y[positions]

    def accuracy(self, network: nn.Module) -> float:
        """Share of the test images recognised: evidence that the contestant did train."""
        images, labels = self.part("test")
        network.eval()
        with torch.no_grad():
            answers = torch.cat([network(x).argmax(1) for x in images.split(500)])
        return float((answers == labels).float().mean())

    def report(self, images_per_second: Sequence[float], accuracy: float, note: str = "") -> None:
        """Print the contestant's one line: images per second of each round, warm-up included."""
        rates = [round(rate, 1) for rate in images_per_second]
        line = {"images_per_second": rates, "accuracy": round(accuracy, 4), "note": note}
        print("\n" + json.dumps(line), flush=True)

    def report_stamps(self, stamps: Sequence[float], accuracy: float, note: str = "") -> None:
        """Likewise, from the moments at which rounds began and the last one ended."""
        rates = [self.images_per_round / (b - a) for a, b in pairwise(stamps)]
        self.report(rates, accuracy, note)


def save_data(folder: Path) -> Path:
    """Write the built-in Fashion-MNIST images, normalised, for all contestants to read."""
    from fedsight.data.base import sources

    dataset = sources.get("fashion-mnist-12k")().open()
    arrays: dict[str, Any] = {}
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        pixels = part.images.read(torch.arange(len(part)))
        arrays[f"{name}_images"] = dataset.preprocess.normalise(pixels).numpy()
        arrays[f"{name}_labels"] = part.labels
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def local_epoch(job: Job, network: nn.Module, x: Tensor, y: Tensor) -> None:
    """One client's local training, as an experienced user of PyTorch writes it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=job.lr, fused=True)
    network.train()
    for images, labels in job.batches(x, y):
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
