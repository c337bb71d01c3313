"""All closed-form heads: the bits of all images pooled; several strengths; class means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import federations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsight.algorithms.closed_form import best, held_out
from fedsight.core.errors import SiteError
from fedsight.models.features import features, linear_head
from fedsight.program.federation import Federation

Make = Callable[..., Federation]
ROUND = {"rounds": 1}
STRENGTHS = [1e-4, 0.01, 1.0]
FORMS: dict[str, dict[str, Any]] = {
    "class means": {"algorithm": {"name": "ncm", "high": 4.0}},
    "class means, clipped": {"algorithm": {"name": "ncm", "clip": 1.0}},
    "ridge, clipped": {"algorithm": {"name": "ridge", "clip": 0.7}},
    "ridge, several strengths": {
        "algorithm": {"name": "ridge", "high": 4.0, "held_out": 0.3, "strengths": STRENGTHS}
    },
    "ridge, clipped, several strengths": {
        "algorithm": {"name": "ridge", "clip": 1.0, "held_out": 0.3, "strengths": STRENGTHS}
    },
    "ridge, random features": {
        "algorithm": {"name": "ridge"},
        "model": {"lift": 24, "lift_by": "relu"},
    },
}


def seen(of: Federation) -> tuple[Tensor, Tensor]:
    """Features [n, d] and labels [n] of all training images, in the order of the sites."""
    data = of.all_pooled().client(0)
    of.layout.bind(of.network.module, of.initial.clone())
    of.network.module.eval()
    with torch.no_grad():
        pairs = list(features(of.network, [of.batch(data, torch.arange(len(data)))]))
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_head_has_the_same_bits_for_every_split_and_protection(
    form: dict[str, Any], tiny_federation: Make
) -> None:
    def sha(sites: int, **sections: Any) -> str:
        split = {"name": "dirichlet", "sites": sites, "alpha": 0.1}
        if sites in (1, 40):
            split = {"name": "iid", "sites": sites}
        of = tiny_federation(rounds=ROUND, split=split, **form, **sections)
        return federations.sha(federations.learn(of).vector)

    pooled = sha(1)
    assert sha(10) == pooled
    assert sha(40) == pooled
    assert sha(5, secure={"name": "secagg"}) == pooled
    assert sha(5, data={"train": 119}) != pooled


def test_the_strength_is_that_with_the_least_error_on_held_out_images(
    tiny_federation: Make,
) -> None:
    """Each candidate by least squares on the others; the head is of all images, with the best."""
    several = {"name": "ridge", "high": 4.0, "held_out": 0.3, "strengths": STRENGTHS}
    of = tiny_federation(algorithm=several, rounds=ROUND)
    x, labels = seen(of)
    levels = (x.double().clamp(0, 4) / 4 * 4095).round()
    aside = held_out(levels, 0.3).numpy()
    assert 0 < aside.sum() < len(aside)
    x, y = levels.numpy(), np.eye(10)[labels.numpy()]

    def error(strength: float) -> float:
        own, target = x[~aside], y[~aside]
        mean, wide = own.mean(0), own.shape[1]
        penalty = strength * np.square(own - mean).sum() / wide
        rows = np.vstack([own - mean, np.eye(wide) * penalty**0.5])
        due = np.vstack([target - target.mean(0), np.zeros((wide, 10))])
        weight = np.linalg.lstsq(rows, due, rcond=None)[0]
        return float(np.square((x[aside] - mean) @ weight + target.mean(0) - y[aside]).sum())

    chosen = min(STRENGTHS, key=error)
    single = tiny_federation(
        algorithm={**several, "held_out": 0.0, "strengths": [chosen]}, rounds=ROUND
    )
    assert torch.equal(federations.learn(of).vector, federations.learn(single).vector)


def test_nothing_is_chosen_by_no_images(tiny_federation: Make) -> None:
    form = {"name": "ridge", "high": 4.0, "held_out": 1e-6}
    with pytest.raises(SiteError, match="none of the images is held out"):
        federations.learn(tiny_federation(algorithm=form, rounds=ROUND))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 30))
def test_the_error_of_candidates_is_ranked_from_sums(seed: int, wide: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-9, 9, (images, wide)), np.eye(3)[rng.integers(0, 3, images)]
    weights = [rng.normal(size=(3, wide)) for _ in range(4)]
    errors = [np.square(x @ one.T - y).sum() for one in weights]
    sums = torch.from_numpy(x.T @ x), torch.from_numpy((x.T @ y).astype(np.int64))
    assert best([torch.from_numpy(one) for one in weights], *sums) == int(np.argmin(errors))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(0.1, 0.5))
def test_whether_an_image_is_held_out_depends_on_it_alone(
    seed: int, wide: int, share: float
) -> None:
    draws = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 4096, (2000, wide), generator=draws).double()
    aside = held_out(levels, share)
    order = torch.randperm(2000, generator=draws)
    assert torch.equal(held_out(levels[order], share), aside[order])
    assert torch.equal(held_out(levels[7:8], share), aside[7:8])
    different = len(levels.unique(dim=0))
    if different > 1900:
        assert abs(float(aside.double().mean()) - share) < 0.06
    assert not bool(held_out(levels, 0.0).any())


def test_class_means_are_those_of_the_images(tiny_federation: Make) -> None:
    of = tiny_federation(algorithm={"name": "ncm", "high": 4.0}, rounds=ROUND)
    x, y = seen(of)
    x = x.double().clamp(0, 4)
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    of.layout.bind(of.network.module, federations.learn(of).vector)
    head = linear_head(of.network)
    due = (means / means.norm(dim=1, keepdim=True)).float()
    torch.testing.assert_close(head.weight.detach(), due, atol=1e-3, rtol=0)
    assert not bool(head.bias.any())


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"algorithm": {"name": "ridge", "held_out": 0.1, "strengths": [1.0]}}, "held_out"),
        ({"algorithm": {"name": "ridge", "held_out": 0.1, "clip": 1.0}}, "held_out"),
        ({"algorithm": {"name": "ridge", "strengths": [1.0, 2.0], "clip": 1.0}}, "strengths"),
        ({"algorithm": {"name": "ridge"}, "model": {"lift": 8}}, "low"),
        (
            {
                "algorithm": {"name": "ridge", "held_out": 0.1, "strengths": [1, 2], "clip": 1.0},
                "privacy": {"name": "example", "epsilon": 3.0},
            },
            "held_out",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], where: str) -> None:
    problems = federations.program(rounds=ROUND, **sections).check()
    assert [problem.where for problem in problems] == [f"algorithm.{where}"]


@pytest.mark.parametrize("form", ["class means", "ridge, several strengths"])
def test_sums_that_no_images_have_are_told_apart(form: str, tiny_federation: Make) -> None:
    of = tiny_federation(rounds=ROUND, **FORMS[form])
    sums, algorithm = federations.learn(of).checkpoint.state, of.program.algorithm
    assert algorithm.is_possible(sums, 120)
    assert not algorithm.is_possible(sums, 119)
    cross = sums["cross"].clone()
    cross[0, 0] = -1
    assert not algorithm.is_possible({**sums, "cross": cross}, 120)
    cross[0, 0] = 4095 * 120 + 1
    assert not algorithm.is_possible({**sums, "cross": cross}, 120)


@pytest.mark.parametrize("form", ["ridge", "ncm"])
def test_features_that_are_no_numbers_end_the_round_where_nothing_bounds_them(
    form: str, tiny_federation: Make
) -> None:
    of = tiny_federation(rounds=ROUND, algorithm={"name": form})
    assert not of.program.algorithm.remembers  # so masks are all that a contract asks for
    of.initial[-1] = math.nan  # of a frozen layer
    with pytest.raises(SiteError, match="features that are not finite"):
        federations.learn(of)
