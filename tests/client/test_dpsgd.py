"""DP-SGD at a site: the gradients of single images, their clipped sum, and the noise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import federations
import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedsight.client.dpsgd import PrivateSteps, read
from fedsight.client.optimizers import make_optimizer
from fedsight.client.per_image import PerImage
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
        read=lambda index, draws: client.federation.batch(data, index),
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
    gradients = PerImage(task, client.model, lesson.optimizer)
    seven = [(position, 5) for position in range(7)]
    found, again = (gradients.clipped_sum(read(lesson, seven), clip) for _ in range(2))
    for one_sum, other, wanted in zip(found, again, expected, strict=True):
        assert torch.allclose(one_sum.float(), wanted, atol=1e-5)
        assert torch.equal(one_sum, other)
    if clip < 1:
        assert float(torch.nn.utils.get_total_norm(found)) <= 7 * clip * 1.001


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


def test_a_step_may_meet_no_image() -> None:
    client, lesson, _ = parts(clip=1.0)
    gradients = PerImage(lesson.task, client.model, lesson.optimizer)
    assert all(not part.any() for part in gradients.clipped_sum([], 1.0))


def test_weights_that_part_have_other_coins_from_there_on() -> None:
    """The accountant takes coins to be independent: another correction must not meet the same."""
    drawn: list[list[list[int]]] = []
    for correction in (0.0, 0.1):
        client, lesson, _ = parts(clip=1.0)
        data = client.federation.client(0)
        met: list[list[int]] = [[]]

        def one(index: torch.Tensor, draws: object, met: list[list[int]] = met) -> Batch:
            met[-1].extend(index.tolist())
            return client.federation.batch(data, index)  # noqa: B023 - used in this turn only

        def correct(
            gradients: list[torch.Tensor],
            by: float = correction,
            met: list[list[int]] = met,
        ) -> list[torch.Tensor]:
            met.append([])
            return [gradient + by for gradient in gradients]

        steps_of(client).train(replace(lesson, epochs=2, read=one, correct=correct))
        drawn.append(met)
    assert drawn[0][0] == drawn[1][0]  # of the same weights: the same release, no new one
    assert all(one != other for one, other in zip(drawn[0][1:-1], drawn[1][1:-1], strict=True))
