"""DP-SGD at a site: single gradients as Opacus and as one image at a time have them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tiny
import torch

from fedsight.client.dpsgd import PrivateSteps, _single_gradients
from fedsight.client.sgd import LocalSGD
from fedsight.client.step import Client
from fedsight.core.types import Batch
from fedsight.privacy.mechanisms.example import Example
from fedsight.privacy.noise import Noise
from fedsight.program.federation import Federation

NOISE = partial(Noise, 0)


def make(**sections: Any) -> Federation:
    rounds = {"weighting": "uniform"}
    return tiny.federation(rounds=rounds, privacy={"name": "example", **sections})


def parts(clip: float, noise_multiplier: float = 1.0) -> tuple[Client, PrivateSteps, Batch]:
    federation = make(clip=clip, noise_multiplier=noise_multiplier)
    client = Client(federation)
    mechanism = federation.program.privacy
    assert isinstance(mechanism, Example)
    steps = PrivateSteps(mechanism, federation.plan(), 40, NOISE)
    data = federation.client(0)
    client.model.train()
    return client, steps, federation.batch(data, torch.arange(7))


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e9])
def test_the_sum_is_that_of_gradients_taken_and_clipped_one_by_one(clip: float) -> None:
    client, steps, batch = parts(clip)
    task, parameters = client.federation.program.task, list(client.model.parameters())
    expected = [torch.zeros_like(p) for p in parameters]
    for number in range(len(batch.y)):
        one = Batch(batch.x[number : number + 1], batch.y[number : number + 1])
        gradients = torch.autograd.grad(task.loss(client.model, one), parameters)
        length = torch.nn.utils.get_total_norm(gradients)
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient * min(1.0, clip / float(length))
    with _single_gradients(client.model):
        found = steps._sum(client.model, task, parameters, batch)
        again = steps._sum(client.model, task, parameters, batch)
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

        client, steps, batch = parts(clip=0.5)
        task, parameters = client.federation.program.task, list(client.model.parameters())
        with _single_gradients(client.model):
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
            found = steps._sum(client.model, task, parameters, batch)
    for ours, other in zip(found, wanted, strict=True):
        assert torch.allclose(ours / 16, other, atol=1e-5)


def test_noise_is_the_clip_times_the_multiplier_over_the_expected_batch() -> None:
    client, steps, _ = parts(clip=0.5, noise_multiplier=3.0)
    parameters = list(client.model.parameters())
    zeros = [torch.zeros_like(p) for p in parameters]
    one, other = (
        torch.cat([g.flatten() for g in steps._disturbed(zeros, zeros, step)]) for step in (0, 1)
    )
    assert float(one.std()) == pytest.approx(0.5 * 3.0 / 16, rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.15


def test_a_step_may_meet_no_image_and_nothing_stays_on_the_model() -> None:
    client, steps, _ = parts(clip=1.0)
    parameters = list(client.model.parameters())
    task = client.federation.program.task
    with _single_gradients(client.model):
        total = steps._sum(client.model, task, parameters, None)
    assert all(not part.any() for part in total)
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in parameters)
    assert not client.model._forward_hooks


def test_weights_that_part_have_other_coins_from_there_on() -> None:
    """The accountant takes coins to be independent: another correction must not meet the same."""
    drawn: list[list[list[int]]] = []
    for correction in (0.0, 0.1):
        client, steps, _ = parts(clip=1.0)
        data = client.federation.client(0)
        met: list[list[int]] = []

        def read(index: torch.Tensor, met: list[list[int]] = met) -> Batch:
            met.append(index.tolist())
            return client.federation.batch(data, index)  # noqa: B023 - used in this turn only

        def correct(gradients: list[torch.Tensor], by: float = correction) -> list[torch.Tensor]:
            return [gradient + by for gradient in gradients]

        optimiser = LocalSGD(list(client.model.parameters()), 0.1, 0.0, 0.0)
        task = client.federation.program.task
        steps.train(client.model, task, optimiser, read, 2, correct, 0)
        drawn.append(met)
    assert drawn[0][0] == drawn[1][0]  # of the same weights: the same release, no new one
    assert all(one != other for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))
