"""FedDyn, FedNova, FedExP and q-FedAvg and FedSAM against their papers, once more in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
import torch
from quadratics import Quadratics, Vector

from fedsight.algorithms.afl import AFL
from fedsight.algorithms.base import Algorithm, Local
from fedsight.algorithms.fedavg import FedAvg
from fedsight.algorithms.feddyn import FedDyn
from fedsight.algorithms.fedexp import FedExP
from fedsight.algorithms.fednova import FedNova
from fedsight.algorithms.fedsam import FedSAM
from fedsight.algorithms.qfedavg import QFedAvg
from fedsight.algorithms.scaffold import Scaffold
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.threads import one_thread
from fedsight.core.types import Order
from fedsight.engines.in_process import InProcessEngine
from fedsight.models.zoo.small_cnn import SmallCNN
from fedsight.privacy.base import split
from fedsight.program.federation import federate

UNEQUAL = Quadratics(weights=[45, 30, 10, 8, 1], steps=[9, 6, 2, 2, 1], lr=0.1)


def of(cohort: Sequence[int]) -> list[tuple[int, float]]:
    """The sites of a cohort and their shares p_i of its weight."""
    weight = sum(UNEQUAL.weights[site] for site in cohort)
    return [(site, UNEQUAL.weights[site] / weight) for site in cohort]


def feddyn(cohorts: Sequence[Sequence[int]], alpha: float) -> Vector:
    """Acar et al. 2021, Algorithm 1, with |P|/m as the weight that took part."""
    x, h, known = np.zeros(4), np.zeros(4), [np.zeros(4) for _ in UNEQUAL.weights]
    for cohort in cohorts:
        ends = []
        for site, p in of(cohort):
            y = x.copy()
            for _ in range(UNEQUAL.steps[site]):
                y = y - UNEQUAL.lr * (UNEQUAL.grad(site, y) - known[site] + alpha * (y - x))
            known[site] = known[site] - alpha * (y - x)
            h = h - alpha * UNEQUAL.weights[site] / sum(UNEQUAL.weights) * (y - x)
            ends.append(p * y)
        x = sum(ends) - h / alpha
    return x


def fednova(cohorts: Sequence[Sequence[int]]) -> Vector:
    """Wang et al. 2020: x - tau_eff sum p_i lr d_i, with tau_eff = sum p_i tau_i for plain SGD."""
    x = np.zeros(4)
    for cohort in cohorts:
        tau = sum(p * UNEQUAL.steps[site] for site, p in of(cohort))
        x = x + tau * sum(p * UNEQUAL.walk(s, x) / UNEQUAL.steps[s] for s, p in of(cohort))
    return x


def fedexp(cohorts: Sequence[Sequence[int]], epsilon: float) -> Vector:
    """Jhunjhunwala et al. 2023, Algorithm 1, for weighted updates."""
    x, rates = np.zeros(4), []
    for cohort in cohorts:
        deltas = [(p, UNEQUAL.walk(site, x)) for site, p in of(cohort)]
        mean = sum(p * delta for p, delta in deltas)
        rate = sum(p * delta @ delta for p, delta in deltas) / (2 * (mean @ mean + epsilon))
        rates.append(max(1.0, rate))
        x = x + rates[-1] * mean
    assert min(rates) == 1.0
    assert max(rates) > 1.5
    return x


def qfedavg(cohorts: Sequence[Sequence[int]], q: float) -> Vector:
    """Li et al. 2020, Algorithm 2, with L = 1 / lr, for weighted sites."""
    x, smooth = np.zeros(4), 1 / UNEQUAL.lr
    for cohort in cohorts:
        moved, divisors = np.zeros(4), 0.0
        for site, p in of(cohort):
            loss, change = UNEQUAL.loss(site, x), -smooth * UNEQUAL.walk(site, x)
            moved += p * loss**q * change
            divisors += p * (q * loss ** (q - 1) * change @ change + smooth * loss**q)
        x = x - moved / divisors
    return x


def fedsam(cohorts: Sequence[Sequence[int]], rho: float) -> Vector:
    """Qu et al. 2022, Algorithm 1: each step along the gradient where the loss is worse."""
    x = np.zeros(4)
    for cohort in cohorts:
        ends = []
        for site, p in of(cohort):
            y = x.copy()
            for _ in range(UNEQUAL.steps[site]):
                uphill = UNEQUAL.grad(site, y)
                y -= UNEQUAL.lr * UNEQUAL.grad(site, y + rho * uphill / np.linalg.norm(uphill))
            ends.append(p * y)
        x = sum(ends)
    return x


def afl(cohorts: Sequence[Sequence[int]], rate: float) -> Vector:
    """Descent with weights l_k ~ p_k exp(rate sum of F_k), in whole numbers of 2^-16."""
    x, logs, mean = np.zeros(4), np.zeros(len(UNEQUAL.weights)), None
    for cohort in cohorts:
        moved, total, losses = np.zeros(4), 0.0, 0.0
        for site, p in of(cohort):
            factor, loss = np.rint(np.exp(logs[site]) * 2**16) / 2**16, UNEQUAL.loss(site, x)
            moved += p * factor * UNEQUAL.walk(site, x)
            total, losses = total + p * factor, losses + p * loss
            logs[site] += 0.0 if mean is None else rate * (loss - mean)
        x, mean = x + moved / total, losses
    return x


ORACLES: dict[str, tuple[Algorithm, Callable[[Sequence[Sequence[int]]], Vector]]] = {
    "feddyn": (FedDyn(alpha=0.3), lambda cohorts: feddyn(cohorts, 0.3)),
    "fednova": (FedNova(), fednova),
    "fedexp": (FedExP(epsilon=1e-4), lambda cohorts: fedexp(cohorts, 1e-4)),
    "fedsam": (FedSAM(rho=0.3), lambda cohorts: fedsam(cohorts, 0.3)),
    "afl": (AFL(rate=0.2), lambda cohorts: afl(cohorts, 0.2)),
    "qfedavg, q = 2": (QFedAvg(q=2.0), lambda cohorts: qfedavg(cohorts, 2.0)),
    "qfedavg, q = 0.5": (QFedAvg(q=0.5), lambda cohorts: qfedavg(cohorts, 0.5)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_algorithm_follows_its_paper_with_some_of_unequal_sites_in_a_round(name: str) -> None:
    algorithm, oracle = ORACLES[name]
    cohorts = UNEQUAL.cohorts(12, 3)
    found, _ = UNEQUAL.learn(algorithm, cohorts)
    np.testing.assert_allclose(found, oracle(cohorts), atol=2e-6)


@pytest.mark.parametrize("weights", [[1, 1], [5, 1]], ids=["equal", "unequal"])
def test_scaffold_and_feddyn_reach_the_joint_optimum_of_two_curvatures_and_fedavg_does_not(
    weights: list[float],
) -> None:
    sites = Quadratics(
        weights=weights,
        steps=[10, 10],
        lr=0.1,
        curved=[np.diag([1.0, 0.5]), np.diag([0.3, 3.0])],
        wanted=[np.array([1.0, -1.0]), np.array([-1.0, 2.0])],
    )
    everyone = [[0, 1]] * 60
    for algorithm in (Scaffold(), FedDyn(alpha=0.5)):
        found, _ = sites.learn(algorithm, everyone)
        np.testing.assert_allclose(found, sites.joint, atol=1e-3, err_msg=str(algorithm))
    plain, _ = sites.learn(FedAvg(), everyone)
    assert np.linalg.norm(plain - sites.joint) > 0.2


def test_feddyn_reaches_the_joint_optimum_of_unequal_sites_with_three_of_five_in_a_round() -> None:
    found, state = UNEQUAL.learn(FedDyn(alpha=1.0), UNEQUAL.cohorts(600, 3))
    np.testing.assert_allclose(found, UNEQUAL.joint, atol=1e-4)
    assert state["gradient"].norm() < 1e-3


def test_what_feddyn_keeps_is_the_gradient_where_local_training_ended() -> None:
    """The condition for a minimum of the regularised loss, which gives the paper's update."""
    sites, algorithm = Quadratics(weights=[1], steps=[1], lr=0.1), FedDyn(alpha=0.4)
    known = torch.tensor([0.3, -0.2, 0.1, 0.5]).double()
    at = Local(torch.ones(4).double(), {}, {"gradient": known}, 0.1)
    y = at.start
    for _ in range(600):
        grad = torch.from_numpy(sites.grad(0, y.numpy()))
        y = y - 0.1 * algorithm.correct(grad, y, at)
    _, kept = algorithm.finish(y, at)
    np.testing.assert_allclose(kept["gradient"].numpy(), sites.grad(0, y.numpy()), atol=1e-9)


def test_fednova_ends_at_the_weighted_optimum_where_fedavg_favours_those_with_more_steps() -> None:
    """FedAvg's distance does not depend on the rate; what FedNova leaves vanishes with it."""
    ends = {}
    for lr in (0.04, 0.004):
        sites = Quadratics(UNEQUAL.weights, UNEQUAL.steps, lr)
        everyone = [list(range(5))] * int(4 / lr)
        ends[lr] = [
            float(np.linalg.norm(sites.learn(algorithm, everyone)[0] - sites.joint))
            for algorithm in (FedNova(), FedAvg())
        ]
    (nova, plain), (finer, as_plain) = ends.values()
    assert finer < 0.2 * nova
    assert finer < 0.05 * as_plain
    assert as_plain > 0.8 * plain


def test_the_larger_q_the_more_alike_are_the_losses_of_unequal_sites() -> None:
    """And q = 0 ends where FedAvg does."""
    sites = Quadratics(weights=[9, 3, 1], steps=[2, 2, 2], lr=0.05)
    everyone = [[0, 1, 2]] * 400
    ends = {q: sites.learn(QFedAvg(q=q), everyone)[0] for q in (0.0, 1.0, 4.0)}
    np.testing.assert_array_equal(ends[0.0], sites.learn(FedAvg(), everyone)[0])
    spread = [np.std([sites.loss(site, w) for site in range(3)]) for w in ends.values()]
    assert spread[0] > 1.3 * spread[1] > 1.3 * 1.3 * spread[2]
    worst = [max(sites.loss(site, w) for site in range(3)) for w in ends.values()]
    assert worst[0] > worst[1] > worst[2]


# -- through the real loop -------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["samples", "capped", "uniform"])
def test_feddyns_server_holds_the_weighted_mean_of_what_sites_keep(
    weighting: str, tmp_path: Path
) -> None:
    made = federations.federation(
        split={"name": "dirichlet", "alpha": 0.3, "sites": 4},
        algorithm={"name": "feddyn", "alpha": 0.1},
        rounds={
            "rounds": 5,
            "cohort": 2,
            "weighting": weighting,
            **({"cap": 25} if weighting == "capped" else {}),
        },
    )
    sizes = np.array([made.size(site) for site in range(4)], float)
    assert sizes.min() < 25 < sizes.max()
    counted = {"samples": sizes, "capped": np.minimum(sizes, 25), "uniform": np.ones(4)}
    weights = counted[weighting]
    engine = InProcessEngine(made, tmp_path / "memory")
    found = federations.learn(made, engine)
    engine.close()
    store = MemoryStore(tmp_path / "memory")
    kept = [store.load(made.partition.name(site), 10**9).get("gradient") for site in range(4)]
    known = [torch.zeros(()) if one is None else one for one in kept]
    mean = sum(w * one.double() for w, one in zip(weights / weights.sum(), known, strict=True))
    _, rest = split(found.checkpoint.state)
    torch.testing.assert_close(rest["gradient"].double(), mean, atol=1e-6, rtol=0)
    assert mean.norm() > 0.01


@pytest.mark.parametrize("name", ["fednova", "fedexp"])
def test_a_round_is_made_of_fedavgs_updates(name: str) -> None:
    """Unequal sites, and BatchNorm, whose statistics are averaged as ever."""
    sections = {
        "split": {"name": "dirichlet", "sites": 6, "alpha": 0.1, "min_samples": 4},
        "model": {"norm": "batch"},
        "train": {"epochs": 2, "batch": 4, "lr": 0.1},
        "rounds": {"rounds": 1},
    }
    plain = federations.federation(**sections)
    client, layout = Client(plain), plain.layout
    start, sizes = plain.initial[layout.travelling], [plain.size(site) for site in range(6)]
    with one_thread():
        deltas = torch.stack(
            [client.step(Order(1, start), site, {}).payload["delta"].double() for site in range(6)]
        )[:, layout.shared]
    p = torch.tensor(sizes).double() / sum(sizes)
    if name == "fednova":
        lone = [-(-n // 4) - (n % 4 == 1) for n in sizes]  # a lone image joins the last batch
        tau = 2 * torch.tensor(lone).double()
        assert tau.max() > 2 * tau.min()
        moved = (p * tau).sum() * (p / tau) @ deltas
    else:
        mean = p @ deltas
        rate = float(p @ deltas.square().sum(1) / (2 * mean.square().sum() + 2e-3))
        assert rate > 1.1
        moved = rate * mean
    found = federations.learn(federations.federation(**sections, algorithm={"name": name})).vector
    same = federations.learn(plain).vector
    expected = start[layout.shared].double() + moved
    torch.testing.assert_close(found[layout.shared].double(), expected, atol=2e-6, rtol=0)
    assert torch.equal(found[layout.buffer], same[layout.buffer])
    assert (found - same)[layout.shared].abs().max() > 1e-4


def test_fednova_with_equal_steps_equals_fedavg() -> None:
    plain, other = (
        federations.learn(federations.federation(algorithm={"name": name})).vector
        for name in ("fedavg", "fednova")
    )
    torch.testing.assert_close(other, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
def test_fedsam_with_rho_0_equals_fedavg_bit_for_bit(momentum: float | None) -> None:
    """BatchNorm too: the second look changes no statistic, nor how many batches were counted."""
    plain, sam = (
        federations.program(
            algorithm=algorithm,
            split={"name": "dirichlet", "sites": 4, "alpha": 0.3},
            train={"momentum": 0.9, "epochs": 2},
            rounds={"rounds": 3, "cohort": 2},
        )
        for algorithm in ({"name": "fedavg"}, {"name": "fedsam", "rho": 0.0})
    )
    model = SmallCNN if momentum else federations.Counting
    made = model(width=4, blocks=2, norm="batch")
    shas = {
        federations.sha(federations.learn(federate(replace(one, model=made))).vector)
        for one in (plain, sam)
    }
    assert len(shas) == 1


def test_fedsams_step_is_the_gradient_at_a_distance_rho_uphill() -> None:
    sections = {"train": {"batch": 200, "lr": 0.1}, "model": {"norm": "batch"}}
    made = federations.federation(**sections, algorithm={"name": "fedsam", "rho": 0.2})
    begun = made.initial[made.layout.travelling]
    with one_thread():
        plain = Client(federations.federation(**sections))
        here = plain.step(Order(1, begun), 0, {}).payload["delta"]
        uphill, shared = begun.clone(), made.layout.shared
        uphill[shared] -= 0.2 * here[shared] / here[shared].norm()
        there = plain.step(Order(1, uphill), 0, {}).payload["delta"]
        worker = Client(made)
        delta = worker.step(Order(1, begun), 0, {}).payload["delta"]
    torch.testing.assert_close(delta[shared], there[shared], atol=1e-6, rtol=0)
    assert (there - here)[shared].abs().max() > 1e-4
    assert torch.equal(delta[made.layout.buffer], here[made.layout.buffer])


@pytest.mark.parametrize("limit", [{"name": "qfedavg", "q": 0.0}, {"name": "afl", "rate": 0.0}])
def test_in_its_limit_an_algorithm_equals_fedavg_bit_for_bit(limit: dict[str, Any]) -> None:
    sections = {
        "split": {"name": "dirichlet", "sites": 4, "alpha": 0.3},
        "rounds": {"rounds": 3, "cohort": 2},
        "model": {"norm": "batch"},
    }
    shas = {
        federations.sha(federations.learn(federations.federation(**sections, **more)).vector)
        for more in ({}, {"algorithm": limit})
    }
    assert len(shas) == 1


def test_qfedavg_scales_an_update_by_the_loss_of_all_images_where_it_began() -> None:
    """Unaugmented, with the weights of classes, in evaluation mode: no dropout."""
    sections = {
        "model": {"dropout": 0.5},
        "task": {"class_weights": [0.5, 2.0] * 5},
        "train": {"batch": 16, "lr": 0.1, "augment": ["flip"]},
    }
    plain = federations.federation(**sections)
    made = federations.federation(**sections, algorithm={"name": "qfedavg", "q": 2.0})
    begun = made.initial[made.layout.travelling]
    delta, payload = (Client(one).step(Order(1, begun), 1, {}).payload for one in (plain, made))
    data, module = made.client(1), made.build().module.eval()
    batch = made.batch(data, torch.arange(len(data)))
    weights = torch.tensor([0.5, 2.0] * 5)
    losses = torch.nn.functional.cross_entropy(module(batch.x), batch.y, weights, reduction="none")
    loss, square = float(losses.mean().detach()), float(delta["delta"].double().square().sum())
    torch.testing.assert_close(payload["delta"], loss**2 * delta["delta"], rtol=1e-4, atol=1e-7)
    assert float(payload["divisor"]) == pytest.approx(loss**2 + 2 * loss * square / 0.1, rel=1e-4)


def test_qfedavg_refuses_optimisers_whose_step_is_not_the_rate() -> None:
    assert QFedAvg().check(federations.program()) == []
    for section in ({"momentum": 0.9}, {"optimiser": "adamw"}):
        (found,) = QFedAvg().check(federations.program(train=section))
        assert found.where == f"train.{next(iter(section))}"


def test_fednova_refuses_optimisers_whose_path_has_another_length() -> None:
    assert FedNova().check(federations.program(train={"clip": 1.0})) == []
    found = FedNova().check(federations.program(train={"momentum": 0.9}))
    assert [problem.where for problem in found] == ["train.momentum"]
    found = FedNova().check(federations.program(train={"optimiser": "adamw"}))
    assert [problem.where for problem in found] == ["train.optimiser"]


def test_scalars_travel_without_a_codec_that_would_lose_small_ones() -> None:
    made = federations.federation(
        algorithm={"name": "fedexp"},
        codec={"up": {"steps": ["float16"]}},
        train={"lr": 1e-6},
    )
    reply = Client(made).step(Order(1, made.initial), 0, {})
    delta = made.parts["delta"].decode(reply.payload["delta"]).double()
    assert reply.payload["delta"].dtype == torch.uint8
    assert 0 < float(reply.payload["square"]) < 2.0**-25
    assert float(reply.payload["square"]) == pytest.approx(float(delta.square().sum()), rel=0.05)
