"""Ridge heads: the bits of all images pooled, whatever the sites; and the values of an oracle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.algorithms.closed_form import (
    STRENGTHS,
    logit_scale,
    solve,
    symmetric,
    triangle,
    upper,
    with_one,
)
from fedsight.algorithms.ridge import Ridge
from fedsight.core.errors import SiteError
from fedsight.engines.workers import WorkerEngine
from fedsight.models.base import TOGETHER
from fedsight.models.features import features, linear_head
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

Make = Callable[..., Federation]
ROUND = {"rounds": 1}
RIDGE = {"name": "ridge", "high": 4.0}


def digest(federation: Federation, workers: int = 0) -> str:
    engine = WorkerEngine(federation, Speed(workers=workers)) if workers else None
    try:
        found = federations.learn(federation, engine).checkpoint
    finally:
        if engine is not None:
            engine.close()
    return hashlib.sha256(found.vector.numpy().tobytes()).hexdigest()


def products(levels: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    gram = symmetric(triangle(with_one(levels.double())), levels.shape[1] + 1)
    ones = torch.cat([levels, torch.ones(len(levels), 1)], dim=1).to(torch.int64)
    cross = torch.zeros(ones.shape[1], classes, dtype=torch.int64)
    cross.T.index_add_(0, labels, ones)
    return gram, cross


def test_the_head_has_the_same_bits_for_every_split_engine_and_protection(
    tiny_federation: Make,
) -> None:
    def of(sites: int, split: str = "iid", **sections: Any) -> Federation:
        table = {"name": split, "sites": sites}
        if split == "dirichlet":
            table["alpha"] = 0.1
        return tiny_federation(algorithm=RIDGE, rounds=ROUND, split=table, **sections)

    pooled = digest(of(1))
    assert digest(of(1).all_pooled()) == pooled
    assert digest(of(10)) == pooled
    assert digest(of(40)) == pooled
    assert digest(of(4, "dirichlet")) == pooled
    assert digest(of(3), workers=2) == pooled
    for secure in ("quantised", "secagg"):
        assert digest(of(5, secure={"name": secure})) == pooled
    assert digest(of(5, seed=1)) != pooled, "another network has other features"
    assert digest(of(5, data={"train": 119})) != pooled


def test_the_model_is_the_pooled_ridge_regression(tiny_federation: Make) -> None:
    """Least squares with rows for the penalty, by SVD, on the features rounded to 12 bits."""
    of = tiny_federation(algorithm={**RIDGE, "strengths": [0.01]}, rounds=ROUND)
    found = federations.learn(of).vector
    network, data = of.network, of.all_pooled().client(0)
    batch = of.batch(data, torch.arange(len(data)))
    of.layout.bind(network.module, of.initial.clone())
    network.module.eval()
    with torch.no_grad():
        pairs = list(features(network, [batch]))
    x = torch.cat([one for one, _ in pairs]).clamp(0, 4).double().numpy()
    x = np.round(x / 4 * 4095) / 4095 * 4
    y = np.eye(10)[batch.y.numpy()]
    images, wide = x.shape
    penalty = 0.01 * np.square(x - x.mean(0)).sum() / wide
    rows = np.block([[x, np.ones((images, 1))], [np.eye(wide) * penalty**0.5, np.zeros((wide, 1))]])
    oracle = np.linalg.lstsq(rows, np.vstack([y, np.zeros((wide, 10))]), rcond=None)[0]
    of.layout.bind(network.module, found)
    head = linear_head(network)
    np.testing.assert_allclose(head.weight.detach() / logit_scale(10), oracle[:-1].T, atol=1e-5)
    np.testing.assert_allclose(head.bias.detach() / logit_scale(10), oracle[-1], atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(3, 40), st.integers(2, 4))
def test_cross_validation_chooses_the_strength_that_leaving_out_images_would(
    seed: int, wide: int, images: int, classes: int
) -> None:
    """Generalised cross-validation, computed from the hat matrix itself."""
    rng = np.random.default_rng(seed)
    levels = torch.from_numpy(rng.integers(0, 4096, (images, wide)))
    labels = torch.from_numpy(np.arange(images) % classes)
    gram, cross = products(levels, labels, classes)
    x = levels.double().numpy() - levels.double().numpy().mean(0)
    y = np.eye(classes)[labels.numpy()]
    y -= y.mean(0)
    if not np.square(x).sum():
        with pytest.raises(SiteError):
            solve(gram, cross)
        return

    def score(strength: float) -> float:
        penalty = strength * np.square(x).sum() / wide
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(wide), x.T)
        freedom = 1 - (np.trace(hat) + 1) / images
        return float(np.square(y - hat @ y).sum() / freedom**2) if freedom > 1e-9 else np.inf

    scores = [score(float(strength)) for strength in STRENGTHS]
    best = float(STRENGTHS[int(np.argmin(scores))])
    chosen, due = solve(gram, cross), solve(gram, cross, [best])
    if np.isfinite(min(scores)) and sorted(scores)[1] > min(scores) * (1 + 1e-6):
        assert all(torch.equal(one, other) for one, other in zip(chosen, due, strict=True))


@given(st.integers(2, 1000))
def test_a_certain_output_has_the_same_probability_for_any_number_of_classes(classes: int) -> None:
    output = torch.zeros(classes, dtype=torch.float64)
    output[0] = 1
    assert (output * logit_scale(classes)).softmax(0)[0] == pytest.approx(0.99)


def test_images_of_one_class_get_a_head_that_says_so() -> None:
    levels = torch.arange(12).reshape(4, 3)
    weight, bias = solve(*products(levels, torch.full((4,), 2), 3))
    answers = (levels.double() @ weight.T + bias).softmax(1)
    torch.testing.assert_close(answers[:, 2], torch.full((4,), 0.99, dtype=torch.float64))


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 20))
def test_the_triangle_holds_the_whole_matrix_of_exact_products(
    seed: int, wide: int, images: int
) -> None:
    levels = torch.from_numpy(np.random.default_rng(seed).integers(0, 1 << 16, (images, wide)))
    whole = torch.cat([levels, torch.ones(images, 1, dtype=torch.int64)], dim=1)
    due = whole.T @ whole
    assert torch.equal(symmetric(triangle(with_one(levels.double())), wide + 1), due)
    assert torch.equal(symmetric(upper(due), wide + 1), due)


def test_features_do_not_depend_on_the_images_beside_them(tiny_federation: Make) -> None:
    of = tiny_federation(algorithm=RIDGE, rounds=ROUND)
    data = of.all_pooled().client(0)
    of.network.module.eval()

    def seen(sizes: list[int], order: Tensor) -> Tensor:
        batches = (of.batch(data, positions) for positions in order.split(sizes))
        with torch.no_grad():
            return torch.cat([one for one, _ in features(of.network, batches)])

    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    whole = seen([120], torch.arange(120))
    assert torch.equal(seen([7, 50, 63], torch.arange(120)), whole)
    assert torch.equal(seen([1, TOGETHER + 1, 86], order), whole[order])


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"rounds": {"rounds": 2}}, "rounds.rounds"),
        ({"rounds": ROUND, "train": {"augment": ["flip"]}}, "train.augment"),
        ({"rounds": ROUND, "train": {"sampling": "balanced"}}, "train.sampling"),
        ({"rounds": ROUND, "task": {"class_weights": "site"}}, "task.class_weights"),
        ({"rounds": ROUND, "algorithm": {"name": "ridge", "low": 6.0}}, "algorithm.high"),
        ({"rounds": ROUND, "task": {"name": "ordinal"}}, "algorithm.name"),
    ],
)
def test_what_ridge_is_not_made_for_is_refused(sections: dict[str, Any], where: str) -> None:
    problems = federations.program(**{"algorithm": RIDGE, **sections}).check()
    assert where in [problem.where for problem in problems]


def test_features_that_do_not_vary_have_no_head(tiny_federation: Make) -> None:
    of = tiny_federation(algorithm={"name": "ridge", "low": 100.0, "high": 101.0}, rounds=ROUND)
    with pytest.raises(SiteError, match="equal features"):
        federations.learn(of)


def test_ridge_is_its_own_baseline() -> None:
    assert Ridge(bits=8).baseline == Ridge(bits=8)
