"""Every algorithm against its paper's formula, written out a second time in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import federations
import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedsight.algorithms.base import EVERYTHING, Algorithm, Local, Mean, Phase, State, algorithms
from fedsight.algorithms.fedavg import FedAvg, FedProx
from fedsight.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedOpt, FedYogi
from fedsight.algorithms.personal import FedBN, FedPer, FedRep
from fedsight.algorithms.scaffold import Scaffold
from fedsight.client.memory import MemoryStore
from fedsight.core.layout import Kind, Layout
from fedsight.engines.in_process import InProcessEngine
from fedsight.models.zoo.fedavg_cnn import MLP
from fedsight.models.zoo.small_cnn import SmallCNN
from fedsight.privacy.base import split

Vector = npt.NDArray[np.float64]
RNG = np.random.default_rng(0)
X0 = RNG.normal(size=8).astype(np.float32)
DELTAS = [RNG.normal(size=8) * 0.1, RNG.normal(size=8) * 0.1]


def serve(algorithm: Algorithm, **more: list[Vector]) -> tuple[Vector, State]:
    """Two server steps from X0 with DELTAS."""
    vector = torch.from_numpy(X0)
    state = algorithm.init(vector)
    for step, delta in enumerate(DELTAS):
        parts = {"delta": delta, **{name: values[step] for name, values in more.items()}}
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in parts.items()}
        before = vector.clone()
        new, state = algorithm.step(vector, state, Mean(tensors, 0.25), step + 1)
        assert torch.equal(vector, before), "the old vector must be left alone"
        assert new.dtype == torch.float32
        vector = new
    return vector.double().numpy(), state


def adaptive(
    second: Callable[[Vector, Vector], Vector], lr: float, beta1: float, tau: float
) -> Vector:
    """Reddi et al. 2021, Algorithm 2."""
    x, m, v = X0.astype(np.float64), np.zeros(8), np.full(8, tau**2)
    for delta in DELTAS:
        m = beta1 * m + (1 - beta1) * delta
        v = second(v, delta**2)
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


def test_plain_server_step_adds_the_mean_update() -> None:
    expected = X0 + DELTAS[0] + DELTAS[1]
    np.testing.assert_allclose(serve(Algorithm())[0], expected, rtol=1e-6)
    np.testing.assert_allclose(serve(FedAvg())[0], expected, rtol=1e-6)
    half = X0 + 0.5 * (DELTAS[0] + DELTAS[1])
    np.testing.assert_allclose(serve(FedAvg(server_lr=0.5))[0], half, rtol=1e-6)
    np.testing.assert_allclose(serve(FedOpt(server_lr=0.5))[0], half, rtol=1e-6)


def test_fedavgm_carries_its_velocity() -> None:
    v1 = DELTAS[0]
    v2 = 0.8 * v1 + DELTAS[1]
    vector, state = serve(FedAvgM(server_lr=0.5, momentum=0.8))
    np.testing.assert_allclose(vector, X0 + 0.5 * (v1 + v2), rtol=1e-6)
    np.testing.assert_allclose(state["velocity"].numpy(), v2, rtol=1e-6)


@pytest.mark.parametrize("named", [True, False], ids=["own name", "fedopt"])
def test_adagrad_adam_and_yogi_follow_algorithm_2(named: bool) -> None:
    common = {"server_lr": 0.2, "beta1": 0.7, "tau": 0.01}
    beta2 = 0.95
    cases: list[tuple[type[FedOpt], str, Callable[[Vector, Vector], Vector]]] = [
        (FedAdagrad, "adagrad", lambda v, s: v + s),
        (FedAdam, "adam", lambda v, s: beta2 * v + (1 - beta2) * s),
        (FedYogi, "yogi", lambda v, s: v - (1 - beta2) * s * np.sign(v - s)),
    ]
    for own, server, second in cases:
        algorithm = (
            own(beta2=beta2, **common) if named else FedOpt(server=server, beta2=beta2, **common)
        )
        expected = adaptive(second, 0.2, 0.7, 0.01)
        np.testing.assert_allclose(serve(algorithm)[0], expected, rtol=2e-6, err_msg=server)


def test_adagrad_has_no_momentum_unless_asked_for() -> None:
    expected = adaptive(lambda v, s: v + s, 0.03, 0.0, 1e-3)
    np.testing.assert_allclose(serve(FedAdagrad())[0], expected, rtol=2e-6)


def local(**given: object) -> Local:
    values = {"start": torch.from_numpy(X0), "shared": {}, "memory": {}, "lr": 0.1, **given}
    return Local(**values)


def test_fedprox_pulls_towards_the_global_vector() -> None:
    vector = torch.from_numpy(X0) + 1.5
    grad = torch.linspace(-1, 1, 8)
    corrected = FedProx(mu=0.2).correct(grad, vector, local())
    torch.testing.assert_close(corrected, grad + 0.2 * 1.5)
    # the gradient of mu/2 ||w - w_global||^2 by automatic differentiation
    w = vector.clone().requires_grad_()
    (0.1 * (w - torch.from_numpy(X0)).square().sum()).backward()
    torch.testing.assert_close(corrected - grad, w.grad)


def test_only_algorithms_with_a_correction_pay_for_one() -> None:
    corrects = {name for name in algorithms.names() if algorithms.get(name)().corrects}
    assert corrects == {"apfl", "feddyn", "fedprox", "fedsam", "scaffold"}
    grad = torch.ones(8)
    assert FedAvg().correct(grad, grad, local()) is grad


def test_every_algorithm_names_its_paper() -> None:
    for name in algorithms.names():
        facts = algorithms.facts(name)
        assert facts["about"], name
        assert "20" in facts["paper"], name


# -- SCAFFOLD (Karimireddy et al. 2020, Algorithm 1) -----------------------------------------------

A = np.diag([1.0, 2.0, 0.5, 3.0])
B = np.array([1.0, -1.0, 0.5, 2.0])
C, CI = np.array([0.1, -0.2, 0.3, 0.0]), np.array([-0.4, 0.2, 0.1, 0.6])


def scaffold_site(steps: int, lr: float, ci: Vector | None) -> tuple[dict, dict, Vector, Vector]:
    """Local steps on f(y) = y'Ay/2 - b'y; returns payload, memory, y and c_i+ by NumPy."""
    x = np.array([0.5, 1.0, -1.0, 0.25])
    y = x.copy()
    known = np.zeros(4) if ci is None else ci
    algorithm = Scaffold()
    memory = {} if ci is None else {"control": torch.from_numpy(ci)}
    at = Local(torch.from_numpy(x), {"control": torch.from_numpy(C)}, memory, lr)
    vector = torch.from_numpy(x.copy())
    for _ in range(steps):
        grad = torch.from_numpy(A) @ vector - torch.from_numpy(B)
        vector = vector - lr * algorithm.correct(grad, vector, at)
        at.steps += 1
        y = y - lr * (A @ y - B - known + C)
    payload, kept = algorithm.finish(vector, at)
    plus = known - C + (x - y) / (steps * lr)
    return dict(payload), dict(kept), y - x, plus


@pytest.mark.parametrize("ci", [None, CI], ids=["first time", "with memory"])
@pytest.mark.parametrize("steps", [1, 5])
def test_scaffold_site_follows_option_two(steps: int, ci: Vector | None) -> None:
    payload, kept, delta, plus = scaffold_site(steps, 0.05, ci)
    np.testing.assert_allclose(payload["delta"].numpy(), delta, atol=1e-12)
    np.testing.assert_allclose(kept["control"].numpy(), plus, atol=1e-12)
    np.testing.assert_allclose(
        payload["control"].numpy(), plus - (0 if ci is None else ci), atol=1e-12
    )


@pytest.mark.parametrize("ci", [None, CI], ids=["first time", "with memory"])
def test_scaffold_option_two_equals_option_one_after_one_full_batch_step(ci: Vector | None) -> None:
    """Option I sets c_i+ to the gradient at x; the two must agree, which fixes every sign."""
    _, kept, _, _ = scaffold_site(1, 0.05, ci)
    gradient = A @ np.array([0.5, 1.0, -1.0, 0.25]) - B
    np.testing.assert_allclose(kept["control"].numpy(), gradient, atol=1e-12)


def test_scaffold_server_moves_its_control_by_the_share_that_took_part() -> None:
    changes = [RNG.normal(size=8), RNG.normal(size=8)]
    vector, state = serve(Scaffold(server_lr=0.5), control=changes)
    np.testing.assert_allclose(vector, X0 + 0.5 * (DELTAS[0] + DELTAS[1]), rtol=1e-6)
    np.testing.assert_allclose(
        state["control"].numpy(), 0.25 * (changes[0] + changes[1]), rtol=1e-5
    )
    assert Scaffold().shared(state) is state


def test_server_control_is_the_mean_of_all_sites_controls_under_partial_participation() -> None:
    """With c = mean c_i at the start, equation 5 keeps it so whoever takes part."""
    population = 5
    controls = RNG.normal(size=(population, 8)).astype(np.float32)
    state = {"control": torch.from_numpy(controls.mean(axis=0))}
    vector = torch.zeros(8)
    for cohort in ([0, 3], [1], [0, 1, 2, 3, 4], [4, 2, 0]):
        fresh = RNG.normal(size=(len(cohort), 8)).astype(np.float32)
        change = (fresh - controls[cohort]).mean(axis=0, dtype=np.float64)
        controls[cohort] = fresh
        parts = {"delta": torch.zeros(8).double(), "control": torch.from_numpy(change)}
        vector, state = Scaffold().step(vector, state, Mean(parts, len(cohort) / population), 1)
        np.testing.assert_allclose(state["control"].numpy(), controls.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_server_control_of_a_run_is_the_weighted_mean_of_what_sites_keep(
    weighting: str, tmp_path: Path
) -> None:
    """Sites of different sizes, two of four in a round: through the real loop."""
    of = federations.federation(
        split={"name": "dirichlet", "alpha": 0.3, "sites": 4},
        algorithm={"name": "scaffold"},
        rounds={"rounds": 5, "cohort": 2, "weighting": weighting},
    )
    sizes = np.array([of.size(site) for site in range(4)], float)
    assert sizes.max() > 1.5 * sizes.min()
    engine = InProcessEngine(of, tmp_path / "memory")
    found = federations.learn(of, engine)
    engine.close()
    store = MemoryStore(tmp_path / "memory")
    kept = [store.load(of.partition.name(site), 10**9).get("control") for site in range(4)]
    weights = sizes if weighting == "samples" else np.ones(4)
    controls = [torch.zeros(()) if one is None else one for one in kept]
    mean = sum(w * one.double() for w, one in zip(weights / weights.sum(), controls, strict=True))
    _, rest = split(found.checkpoint.state)
    torch.testing.assert_close(rest["control"].double(), mean, atol=1e-5, rtol=0)
    assert mean.norm() > 0.1


@pytest.mark.parametrize("sizes", [range(45, 0, -5), [1] * 9], ids=["unequal", "equal"])
def test_scaffold_reaches_the_joint_optimum_with_three_of_nine_sites_a_round(
    sizes: Sequence[int],
) -> None:
    """Least squares whose sites have optima of their own: no drift is left, whoever takes part."""
    draws, weights = np.random.default_rng(4), np.array(list(sizes), float)
    curved = [np.diag(draws.uniform(0.5, 2, 4)) for _ in weights]
    wanted = [draws.normal(size=4) for _ in weights]
    joint = np.linalg.solve(
        sum(w * a for w, a in zip(weights, curved, strict=True)),
        sum(w * a @ b for w, a, b in zip(weights, curved, wanted, strict=True)),
    )
    algorithm, vector = Scaffold(), torch.zeros(4)
    state, memories = algorithm.init(vector), [{} for _ in weights]
    for round in range(1, 801):
        cohort = draws.choice(len(weights), 3, replace=False)
        share, payloads = weights[cohort].sum() / weights.sum(), []
        for site in cohort:
            at = Local(vector.double(), algorithm.shared(state), memories[site], 0.1)
            y = vector.double()
            for _ in range(5):
                grad = torch.from_numpy(curved[site]) @ (y - torch.from_numpy(wanted[site]))
                y = y - at.lr * algorithm.correct(grad, y, at)
                at.steps += 1
            payload, memories[site] = algorithm.finish(y, at)
            payloads.append({name: weights[site] * part for name, part in payload.items()})
        parts = {
            name: torch.stack([one[name] for one in payloads]).sum(0) / weights[cohort].sum()
            for name in payloads[0]
        }
        vector, state = algorithm.step(vector, state, Mean(parts, float(share)), round)
    np.testing.assert_allclose(vector.numpy(), joint, atol=1e-4)


def test_scaffold_refuses_every_local_optimiser_it_is_not_derived_for() -> None:
    plain, clipped = (
        federations.program(),
        federations.program(train={"momentum": 0.9, "clip": 1.0}),
    )
    assert Scaffold().check(plain) == []
    problems = Scaffold().check(clipped)
    assert [problem.where for problem in problems] == ["train.momentum", "train.clip"]
    assert all("plain local SGD" in problem.cause and problem.cure for problem in problems)
    assert FedAvg().check(clipped) == []


# -- personal slices -------------------------------------------------------------------------------


def personal(algorithm: Algorithm, model: SmallCNN | MLP) -> set[str]:
    network = model.build(1, 8, 8, 3, 0)
    layout = Layout.of(network.module).rekind(lambda n, k: algorithm.kind(n, k, network))
    return {entry.name for entry in layout.entries if entry.kind == Kind.PERSONAL}


def test_fedbn_keeps_all_of_every_norm_at_the_site() -> None:
    scale_and_shift = {f"norm{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    statistics = {f"norm{i}.running_{part}" for i in (0, 1) for part in ("mean", "var")}
    assert personal(FedBN(), SmallCNN(width=4)) == scale_and_shift
    assert personal(FedBN(), SmallCNN(width=4, norm="batch")) == scale_and_shift | statistics
    assert personal(FedBN(), MLP()) == set()


def test_fedper_keeps_the_head_and_the_last_blocks_and_trains_all_at_once() -> None:
    head = {"head.weight", "head.bias"}
    assert personal(FedPer(), SmallCNN(width=4)) == head
    last = {f"{part}1.{of}" for part in ("conv", "norm") for of in ("weight", "bias")}
    found = personal(FedPer(blocks=1), SmallCNN(width=4, blocks=2))
    assert head < found
    assert all(name.startswith(("conv1", "norm1", "head")) for name in found), last
    assert FedPer().phases(2) == [Phase(2, EVERYTHING)]


def test_fedrep_keeps_the_head_and_trains_it_first() -> None:
    assert personal(FedRep(), SmallCNN(width=4)) == {"head.weight", "head.bias"}
    assert FedRep(head_epochs=3).phases(2) == [
        Phase(3, frozenset({Kind.PERSONAL})),
        Phase(2, frozenset({Kind.SHARED, Kind.BUFFER})),
    ]
    assert personal(FedAvg(), SmallCNN(width=4, norm="batch")) == set()
    assert FedAvg().phases(2) == [Phase(2, EVERYTHING)]
