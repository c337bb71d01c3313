"""A federation that opens in milliseconds, and parts that fail in chosen ways.

It is a module of its own, not part of conftest.py, so that worker processes can import it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsight.algorithms.base import Local
from fedsight.algorithms.fedavg import FedAvg
from fedsight.coordinator.callbacks import Callback, Event, ReplyArrived, RoundEnded
from fedsight.coordinator.loop import Trained, run
from fedsight.coordinator.session import Session
from fedsight.coordinator.store import Checkpoint
from fedsight.core.errors import DataError
from fedsight.core.types import Memory, Metrics, Payload
from fedsight.data.base import ArrayImages, Dataset, Part, Source
from fedsight.data.sources.samples import FashionMnist12k
from fedsight.engines.base import Engine
from fedsight.engines.in_process import InProcessEngine
from fedsight.engines.pool import Pool, share_server
from fedsight.evaluation.figures import Evaluator
from fedsight.models.zoo.small_cnn import SmallCNN
from fedsight.program.config import parse
from fedsight.program.federation import Federation, federate
from fedsight.program.program import Program

SECTIONS: dict[str, Any] = {
    "data": {"train": 120, "test": 60},
    "split": {"name": "iid", "sites": 3},
    "shift": {},
    "model": {"name": "small_cnn", "width": 4, "blocks": 2},
    "task": {},
    "algorithm": {"name": "fedavg"},
    "train": {"epochs": 1, "batch": 16, "lr": 0.05},
    "rounds": {"rounds": 2},
}
# Everything that fine-tuning adds to plain training, in one program.
RECIPE: dict[str, Any] = {
    "train": {
        "epochs": 2,
        "lr": 0.003,
        "optimiser": "adamw",
        "schedule": "cosine",
        "schedule_by": "step",
        "warmup": 1,
        "sampling": "balanced",
        "augment": ["crop", "colour", "randaugment", "erase", "mixup", "cutmix"],
    },
    "task": {"class_weights": "site", "label_smoothing": 0.1},
    "rounds": {"rounds": 3, "ema": 0.7},
}


class Tiny(Source):
    """The first images of the built-in sample at half size: [n, 1, 14, 14] in 10 classes."""

    train: int = 120
    test: int = 60
    broken: int | None = None  # the training image that is NaN
    torn: bool = False  # no training image can be read
    stillborn: bool = False  # a worker cannot even be given the images
    owners: int = 0  # the test images' natural ids go round this many sites

    def open(self) -> Dataset:
        """Cut the sample down."""
        full = _sample()
        height = width = 14
        train, test = self._cut(full.train, self.train), self._cut(full.test, self.test)
        if self.broken is not None:
            pixels = train.images.read(torch.arange(self.train))
            pixels[self.broken] = float("nan")
            train = replace(train, images=ArrayImages(pixels, "tiny"))
        if self.torn:
            train = replace(train, images=TornImages(train.images.pixels, "tiny"))
        if self.stillborn:
            train = replace(train, images=StillbornImages(train.images.pixels, "tiny"))
        if self.owners:
            names = [f"site-{number % self.owners:02d}" for number in range(self.test)]
            test = replace(test, sites=names)
        return replace(
            full,
            train=train,
            test=test,
            preprocess=replace(full.preprocess, height=height, width=width),
        )

    def _cut(self, part: Part, count: int) -> Part:
        pixels = part.images.pixels[:count, :, ::2, ::2].contiguous()
        return Part(ArrayImages(pixels, "tiny"), part.labels[:count])


class TornImages(ArrayImages):
    """Images that could be opened but cannot be read."""

    def read(self, indices: Tensor) -> Tensor:
        """Raise what a damaged file raises."""
        raise DataError(f"image {self.name(int(indices[0]))} is torn", "replace the file")


class StillbornImages(ArrayImages):
    """Images that no other process can be given."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise MemoryError("no room for the images")


class Counting(SmallCNN):
    """BatchNorm that averages over all batches so far, and so depends on its counter."""

    def make(
        self, channels: int, height: int, width: int, classes: int
    ) -> tuple[nn.Module, Iterable[str]]:
        """No momentum."""
        module, heads = super().make(channels, height, width, classes)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
        return module, heads


class Stumbling(FedAvg):
    """FedAvg with a defect."""

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """Raise what no mistake of a user raises."""
        raise ZeroDivisionError("a mistake in the algorithm")


def quiet(_: None, pipe: Connection) -> None:
    """A worker that waits until its pipe closes."""
    pipe.send("ready")
    pipe.recv()


def parent(_: None, pipe: Connection) -> None:
    """A worker that says which process it comes from."""
    pipe.send(os.getppid())


def leading(_: None, pipe: Connection) -> None:
    """A worker with a worker of its own, that says which process it comes from, and that one."""
    share_server()
    pool = Pool(parent, [None])
    try:
        pipe.send((os.getppid(), pool.receive(0, "starting")))
    finally:
        pool.close()


def deaf(_: None, pipe: Connection) -> None:
    """A worker that ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send("I hear nothing")
    while True:
        time.sleep(1)


@cache
def _sample() -> Dataset:
    return FashionMnist12k().open()


def program(**sections: Any) -> Program:
    """A program on `Tiny` images; a section given adds to that of `SECTIONS`, or replaces it
    when it names another part."""
    tables: dict[str, Any] = {}
    for name, table in SECTIONS.items():
        given = sections.pop(name, {})
        if given.get("steps"):  # in place of epochs
            table = {key: value for key, value in table.items() if key != "epochs"}
        keeps = given.get("name", table.get("name")) == table.get("name")
        tables[name] = {**table, **given} if keeps else given
    data = Tiny(**tables.pop("data"))
    made, _ = parse({**tables, **sections, "data": {"name": "fashion-mnist-12k"}}, base=None)
    return replace(made, data=data)


def federation(**sections: Any) -> Federation:
    """The opened federation of `program(**sections)`."""
    return federate(program(**sections))


@dataclass
class Diary(Callback):
    """A callback that keeps everything."""

    lines: list[Mapping[str, Any]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    replies: int = 0

    def on(self, event: Event) -> None:
        """Count replies, keep rounds."""
        if isinstance(event, ReplyArrived):
            self.replies += 1
        if isinstance(event, RoundEnded) and event.checkpoint is not None:
            self.lines.append(event.line)
            self.checkpoints.append(event.checkpoint)


class Stop(Callback):
    """An interruption after a round."""

    def __init__(self, round: int) -> None:
        self._round = round

    def on(self, event: Event) -> None:
        """Ctrl-C, once the round has ended."""
        if isinstance(event, RoundEnded) and event.line["round"] == self._round:
            raise KeyboardInterrupt


def overall(of: Federation) -> Callable[[list[Metrics]], Mapping[str, float]]:
    """What the loop calls for a round's figures."""
    evaluator = Evaluator(of)
    return lambda sums: evaluator.figures(sums).overall


def learn(of: Federation, engine: Engine | None = None, diary: Diary | None = None) -> Trained:
    """The whole run through the real loop, in this process unless an engine is given."""
    used = engine or InProcessEngine(of)
    try:
        return run(Session(of), used, overall(of), [diary] if diary else [])
    finally:
        if engine is None:
            used.close()


def sha(vector: Tensor) -> str:
    """SHA-256 of a vector's bytes."""
    return hashlib.sha256(np.ascontiguousarray(vector.numpy()).tobytes()).hexdigest()


def same_sums(one: list[Metrics], other: list[Metrics]) -> bool:
    """Whether the sums of all views are equal, bit for bit."""
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(
            a[name].count == b[name].count and np.array_equal(a[name].total, b[name].total)
            for name in a
        )
        for a, b in zip(one, other, strict=True)
    )
