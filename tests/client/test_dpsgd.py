"""DP-SGD at a site: single gradients as Opacus and as one image at a time have them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import federations
import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedsight.client.dpsgd import PrivateSteps, clipped_sum, single_gradients
from fedsight.client.optimizers import make_optimizer
from fedsight.client.step import Client
from fedsight.client.training import Lesson
from fedsight.core.types import Batch
from fedsight.privacy.mechanisms.example import Example
from fedsight.privacy.noise import Noise
from fedsight.program.federation import Federation

NOISE = partial(Noise, 0)


def make(**sections: Any) -> Federation:
    rounds = {"weighting": "uniform"}
    return federations.federation(rounds=rounds, privacy={"name": "example", **sections})


def lesson_of(client: Client, **changes: Any) -> Lesson:
    """A lesson on the first site's 40 images, with an ordinary SGD."""
    program, data = client.federation.program, client.federation.client(0)
    learning = dict(client.model.named_parameters())
    made = Lesson(
        model=client.model,
        task=program.task,
        read=lambda index: client.federation.batch(data, index),
        samples=40,
        epochs=1,
        batch=16,
        optimizer=make_optimizer(learning, program.train, 0.1, client.network),
        correct=lambda gradients: gradients,
        done=0,
        draws=torch.Generator(),
        noise=NOISE,
    )
    return replace(made, **changes)


def parts(clip: float, noise_multiplier: float = 1.0) -> tuple[Client, Lesson, Batch]:
    federation = make(clip=clip, noise_multiplier=noise_multiplier)
    client = Client(federation)
    client.model.train()
    return client, lesson_of(client), federation.batch(federation.client(0), torch.arange(7))


def steps_of(client: Client) -> PrivateSteps:
    mechanism = client.federation.program.privacy
    assert isinstance(mechanism, Example)
    return PrivateSteps(mechanism, client.federation.plan)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e9])
def test_the_sum_is_that_of_gradients_taken_and_clipped_one_by_one(clip: float) -> None:
    client, lesson, batch = parts(clip)
    task, parameters = client.federation.program.task, list(client.model.parameters())
    expected = [torch.zeros_like(p) for p in parameters]
    for number in range(len(batch.y)):
        one = Batch(batch.x[number : number + 1], batch.y[number : number + 1])
        gradients = torch.autograd.grad(task.loss(client.model, one), parameters)
        length = torch.nn.utils.get_total_norm(gradients)
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient * min(1.0, clip / float(length))
    with single_gradients(client.model):
        found = clipped_sum(lesson, batch, clip)
        again = clipped_sum(lesson, batch, clip)
    for one_sum, other, wanted in zip(found, again, expected, strict=True):
        assert torch.allclose(one_sum, wanted, atol=1e-5)
        assert torch.equal(one_sum, other)
    if clip < 1:
        assert float(torch.nn.utils.get_total_norm(found)) <= 7 * clip * 1.001


def test_opacus_own_optimiser_makes_the_same_step_without_noise() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.optimizers import DPOptimizer

        client, lesson, batch = parts(clip=0.5)
        task, parameters = client.federation.program.task, list(client.model.parameters())
        with single_gradients(client.model):
            task.loss(client.model, batch).backward()
            theirs = DPOptimizer(
                torch.optim.SGD(parameters, lr=0.1),
                noise_multiplier=0.0,
                max_grad_norm=0.5,
                expected_batch_size=16,
            )
            theirs.pre_step()
            wanted = [p.grad.clone() for p in parameters]
            for parameter in parameters:
                parameter.grad_sample = None
            found = clipped_sum(lesson, batch, 0.5)
    for ours, other in zip(found, wanted, strict=True):
        assert torch.allclose(ours / 16, other, atol=1e-5)


def test_noise_is_the_clip_times_the_multiplier_over_the_expected_batch() -> None:
    """Measured on the weights: a step that meets no image moves them by noise alone."""
    client, lesson, _ = parts(clip=0.5, noise_multiplier=3.0)
    nothing = {"uniform": lambda size: np.ones(size)}  # no coin falls

    class Coins(Noise):
        def uniform(self, size: int) -> npt.NDArray[np.float64]:
            return nothing["uniform"](size) if self.coins else super().uniform(size)

    def noise(kind: str, step: int, values: Any) -> Coins:
        stream = Coins(0, kind, step, values=values)
        stream.coins = kind == "examples"
        return stream

    moved: list[torch.Tensor] = []

    def correct(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        moved.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return gradients

    steps_of(client).train(replace(lesson, noise=noise, correct=correct))
    one, other = moved[:2]
    assert float(one.std()) == pytest.approx(0.5 * 3.0 / 16, rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.15


def test_a_step_may_meet_no_image_and_nothing_stays_on_the_model() -> None:
    client, lesson, _ = parts(clip=1.0)
    parameters = list(client.model.parameters())
    with single_gradients(client.model):
        total = clipped_sum(lesson, None, 1.0)
    assert all(not part.any() for part in total)
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in parameters)
    assert not client.model._forward_hooks


def test_weights_that_part_have_other_coins_from_there_on() -> None:
    """The accountant takes coins to be independent: another correction must not meet the same."""
    drawn: list[list[list[int]]] = []
    for correction in (0.0, 0.1):
        client, lesson, _ = parts(clip=1.0)
        data = client.federation.client(0)
        met: list[list[int]] = []

        def read(index: torch.Tensor, met: list[list[int]] = met) -> Batch:
            met.append(index.tolist())
            return client.federation.batch(data, index)  # noqa: B023 - used in this turn only

        def correct(gradients: list[torch.Tensor], by: float = correction) -> list[torch.Tensor]:
            return [gradient + by for gradient in gradients]

        steps_of(client).train(replace(lesson, epochs=2, read=read, correct=correct))
        drawn.append(met)
    assert drawn[0][0] == drawn[1][0]  # of the same weights: the same release, no new one
    assert all(one != other for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))
