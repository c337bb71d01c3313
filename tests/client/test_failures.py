"""What fails on a device is said with its name, and with what would work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedsight.client.step import Client
from fedsight.core.errors import EngineError
from fedsight.core.types import Order
from fedsight.program.federation import Federation

Make = Callable[..., Federation]


def client_with(federation: Federation, fails: Callable[[int], Exception | None]) -> Client:
    """A client whose network raises what `fails` says of a batch of so many images."""

    def before(module: nn.Module, inputs: Any) -> None:
        if (error := fails(len(inputs[0]))) is not None:
            raise error

    client = Client(federation)
    client.model.register_forward_pre_hook(before)
    return client


def order(federation: Federation) -> Order:
    return Order(3, federation.initial[federation.layout.travelling])


@pytest.mark.parametrize(
    ("room", "told"),
    [(15, "a batch of 8 fits"), (5, "a batch of 4 fits"), (0, "not even one image fits")],
)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_batch_that_does_not_fit_names_the_one_that_does(
    room: int, told: str, optimiser: str, tiny_federation: Make
) -> None:
    federation = tiny_federation(train={"optimiser": optimiser})
    client = client_with(
        federation, lambda n: torch.OutOfMemoryError("CUDA out of memory.") if n > room else None
    )
    with pytest.raises(EngineError, match=told) as caught:
        client.step(order(federation), 1, {})
    assert "the memory of cpu ran out" in caught.value.cause
    assert f"site '{federation.name(1)}' in round 3 with train.batch = 16" in caught.value.cause
    assert "train.batch = 4" in caught.value.cure or room != 5
    assert "fedsight resume --device" in caught.value.cure


def test_memory_that_the_machine_really_lacks_is_told_likewise(tiny_federation: Make) -> None:
    """Each image of a batch asks for more than any machine's address space."""
    federation = tiny_federation()

    def asks(images: int) -> None:
        torch.empty(images << 44, dtype=torch.float64)

    client = client_with(federation, asks)
    with pytest.raises(EngineError, match="not even one image fits"):
        client.step(order(federation), 1, {})


def test_too_little_memory_to_measure_is_told(tiny_federation: Make) -> None:
    federation = tiny_federation()
    client = client_with(federation, lambda n: torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(EngineError, match=r"the memory of cpu ran out while measuring 60"):
        client.measure(federation.tested(federation.views[0]), 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
    ],
)
def test_a_device_that_fails_is_named_and_the_run_can_go_on_elsewhere(
    error: Exception, tiny_federation: Make
) -> None:
    federation = tiny_federation()
    client = client_with(federation, lambda n: error)
    said = re.escape(str(error).split("\n")[0])
    with pytest.raises(EngineError, match=f"device cpu failed while training .*{said}\n") as caught:
        client.step(order(federation), 1, {})
    assert "--device cpu" in caught.value.cure


def test_a_mistake_in_a_network_stays_what_it_is(tiny_federation: Make) -> None:
    federation = tiny_federation()
    client = client_with(federation, lambda n: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        client.step(order(federation), 1, {})
