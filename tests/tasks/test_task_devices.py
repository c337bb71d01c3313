"""Tasks work on the device of their inputs: nothing is left on the CPU that meets the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import devices
import numpy as np
import pytest
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
        metrics=["balanced_accuracy", "brier", "top_5"],
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
STATIC = [name for name in CASES if not name.startswith("detect")]  # shapes do not go by values


def begun(name: str) -> Case:
    task, module, batch = CASES[name]()
    known = batch.y if batch.y.dim() == 1 else labels()
    task.begin(module.train(), known, torch.Generator().manual_seed(1))
    return task, module, batch


@pytest.mark.parametrize("name", STATIC)
def test_a_loss_is_computed_on_another_device(name: str) -> None:
    task, module, batch = begun(name)
    fake = devices.Fake()
    there = fake.module(module)
    with fake.mode:
        loss = task.loss(there, Batch(fake.tensor(batch.x), fake.tensor(batch.y)))
    assert loss.device.type == devices.FAKE
    assert loss.shape == ()
    assert loss.requires_grad


@pytest.mark.parametrize("name", STATIC)
def test_a_batch_left_on_the_cpu_is_noticed(name: str) -> None:
    """Or the test before could not fail."""
    task, module, batch = begun(name)
    fake = devices.Fake()
    there = fake.module(module)
    here = Batch(fake.tensor(batch.x, "cpu"), fake.tensor(batch.y, "cpu"))
    with fake.mode, pytest.raises(Exception, match="same device"):
        task.loss(there, here)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_loss_is_made_where_the_images_are(name: str) -> None:
    task, module, batch = begun(name)
    torch.manual_seed(3)
    expected = task.loss(module, batch)
    with devices.Marked() as mode:
        mode.mark((batch.x, batch.y))
        mode.mark(module)
        torch.manual_seed(3)
        loss = task.loss(module, batch)
        assert mode.marked(loss)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("name", CASES)
def test_what_is_measured_and_shown_comes_to_the_cpu(name: str) -> None:
    task, module, batch = begun(name)
    module.eval()

    def found() -> tuple[dict[str, Any], Any]:
        sums = task.measure(module, batch, CLASSES)
        answers = (
            None
            if name in ("arcface", "cosface", "one person")
            else (task.answers(module, batch.x, NAMES))
        )
        return dict(sums), (answers, task.samples(module, batch, NAMES))

    with torch.inference_mode():
        sums, shown = found()
        with devices.Marked() as mode:
            mode.mark((batch.x, batch.y))
            mode.mark(module)
            sums_there, shown_there = found()
    assert shown == shown_there
    assert sums.keys() == sums_there.keys()
    for key, value in sums.items():
        assert isinstance(sums_there[key].total, np.ndarray)
        assert np.array_equal(value.total, sums_there[key].total)


def test_a_site_s_people_are_known_where_the_network_is() -> None:
    task, module, batch = CASES["arcface"]()
    with devices.Marked() as mode:
        mode.mark(module)
        task.begin(module, mode.mark(batch.y), torch.Generator())
        assert mode.marked(module.head.own)
    assert module.head.own.tolist() == [0, 1]


def test_a_tensor_made_on_the_cpu_is_noticed() -> None:
    """Or the tests with marks could not fail."""
    with devices.Marked() as mode:
        x = mode.mark(torch.ones(3))
        for careless in (
            lambda: x + torch.zeros(3),
            lambda: torch.where(x > 0, x, torch.zeros(3)),
            lambda: torch.cat([x, torch.arange(2)]),
            lambda: torch.zeros(3)[x.long()],
            x.numpy,
        ):
            with pytest.raises(devices.MixedError):
                careless()
        assert mode.marked(x + torch.zeros(3, device=x.device) + torch.zeros(3).to(x.device))
        assert not mode.marked(x.cpu() + torch.zeros(3, device=x.cpu().device))
