"""A small network and a batch for each task, in each way that its loss can go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsight.core.types import Batch
from fedsight.data.detection.boxes import pack
from fedsight.models.base import models
from fedsight.tasks.base import Task, tasks

COUNT, CLASSES, SIDE = 6, 4, 16
NAMES = tuple("abcd")
Case = tuple[Task, nn.Module, Batch]


def images(*shape: int) -> Tensor:
    return torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0))


def made(task: str, model: str, y: Tensor, x: Tensor | None = None, **settings: Any) -> Case:
    x = images(1, SIDE, SIDE) if x is None else x
    small = {"small_detector": {"width": 4}, "face_net": {"wavelengths": [4.0]}}
    built = models.get(model)(**small.get(model, {}))
    module = built.build(*x.shape[1:], CLASSES, seed=0).module
    return tasks.get(task)(**settings), module, Batch(x, y)


def labels() -> Tensor:
    return torch.arange(COUNT) % CLASSES


def masks() -> Tensor:
    masks = torch.arange(COUNT * SIDE * SIDE).view(COUNT, SIDE, SIDE) % CLASSES
    masks[0, 0] = 255
    return masks.to(torch.uint8)


def boxes() -> Tensor:
    rows = [[(float(i % CLASSES), 2.0, 2.0, 9.0, 12.0)] * (i % 3) for i in range(COUNT)]
    return pack(rows, [[1] if i == 4 else [] for i in range(COUNT)])


CASES: dict[str, Callable[[], Case]] = {
    "classify": lambda: made(
        "classify",
        "small_cnn",
        labels(),
        label_smoothing=0.1,
        metrics=["brier", "top_5"],
    ),
    "texts": lambda: made("classify", "text_bag", labels(), images(1, 1, 12) * 1000),
    "ordinal": lambda: made("ordinal", "small_cnn", labels(), metrics=["brier"]),
    "multilabel": lambda: made(
        "multilabel",
        "small_cnn",
        (images(CLASSES) > 0.5).float(),
        positive_weight=(1.0, 2.0, 3.0, 4.0),
    ),
    "segment": lambda: made("segment", "unet", masks()),
    "arcface": lambda: made("faces", "face_net", labels() % 2, softmax="arcface"),
    "cosface": lambda: made("faces", "face_net", labels() % 2, softmax="cosface"),
    "one person": lambda: made("faces", "face_net", labels() * 0),
    "detect": lambda: made("detect", "small_detector", boxes()),
    "detect, moved": lambda: made(
        "detect", "small_detector", boxes(), mirror=True, turn=True, zoom=2.0
    ),
}


def begun(name: str) -> Case:
    """Task, network and batch as in a client step."""
    task, module, batch = CASES[name]()
    known = batch.y if batch.y.dim() == 1 else labels()
    task.begin(module.train(), known, np.random.default_rng(1))
    return task, module, batch
