"""AFL minimises the largest of the sites' losses. That it follows its equations with some of
unequal sites in a round is in test_drift."""

from __future__ import annotations

import federations
import numpy as np
import pytest
import torch
from quadratics import Quadratics

from fedsight.algorithms.afl import AFL
from fedsight.algorithms.base import Mean
from fedsight.algorithms.fedavg import FedAvg


def test_afl_minimises_the_largest_loss_and_fedavg_does_not() -> None:
    """On a line between two sites of unequal weight and curvature, where their losses are equal."""
    sites = Quadratics(
        weights=[5, 1],
        steps=[1, 1],
        lr=0.05,
        curved=[np.diag([1.0]), np.diag([4.0])],
        wanted=[np.array([-1.0]), np.array([1.0])],
    )
    best = np.array([1 / 3])  # where (w + 1)^2 = 4 (w - 1)^2
    fair, _ = sites.learn(AFL(rate=0.1), [[0, 1]] * 2000)
    np.testing.assert_allclose(fair, best, atol=0.01)
    plain, _ = sites.learn(FedAvg(), [[0, 1]] * 2000)
    assert abs(plain - best) > 0.3


@pytest.mark.parametrize(
    "protection",
    [
        {"privacy": {"name": name, "noise_multiplier": 1.0}}
        for name in ("central", "local", "example")
    ]
    + [{"secure": {"name": "secagg"}}],
    ids=["central", "local", "example", "secagg"],
)
def test_afl_needs_what_no_protection_hides(protection: dict[str, dict[str, object]]) -> None:
    plain = {"rounds": {"rounds": 2, "weighting": "uniform"}}
    of = federations.program(algorithm={"name": "afl"}, **plain, **protection)
    assert "algorithm.name" in {problem.where for problem in of.check()}
    assert federations.program(algorithm={"name": "afl"}, **plain).check() == []


def test_a_round_without_replies_changes_nothing() -> None:
    """A mean loss of 0 would raise the weight of every site that the next round draws."""
    vector, state = torch.ones(3), {"level": torch.tensor([2.0, 1.0])}
    parts = {"delta": torch.zeros(3), "factor": torch.zeros(1), "loss": torch.zeros(1)}
    new, after = AFL().step(vector, state, Mean(parts, share=0.0), 4)
    assert torch.equal(new, torch.ones(3))
    assert torch.equal(after["level"], torch.tensor([2.0, 1.0]))
