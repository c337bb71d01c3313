"""Tasks work on the device of their inputs: nothing is left on the CPU that meets the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import devices
import numpy as np
import pytest
import torch
from task_cases import CASES, CLASSES, NAMES, begun

from fedsight.core.types import Batch

STATIC = [name for name in CASES if not name.startswith("detect")]  # shapes do not go by values


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
    with fake.mode, pytest.raises(Exception, match=r"same device|two different devices"):
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
        samples = task.samples(module, batch, NAMES)
        areas = [None if one.areas is None else one.areas.tolist() for one in samples]
        return dict(sums), (answers, [replace(one, areas=None) for one in samples], areas)

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
        task.begin(module, mode.mark(batch.y), np.random.default_rng(0))
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
