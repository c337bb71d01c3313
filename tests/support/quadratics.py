"""Sites whose losses are quadratic, and rounds of an algorithm on them, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from fedsight.algorithms.base import Algorithm, Local, Mean, State

Vector = npt.NDArray[np.float64]


@dataclass
class Quadratics:
    """Sites with losses (w - b)' A (w - b) / 2 of their own, weights and numbers of local steps."""

    weights: Sequence[float]
    steps: Sequence[int]
    lr: float
    curved: list[Vector] = field(default_factory=list)
    wanted: list[Vector] = field(default_factory=list)

    def __post_init__(self) -> None:
        draws = np.random.default_rng(4)
        if not self.curved:
            self.curved = [np.diag(draws.uniform(0.5, 2, 4)) for _ in self.weights]
            self.wanted = [draws.normal(size=4) for _ in self.weights]

    @property
    def joint(self) -> Vector:
        """Where the weighted mean of the losses is least."""
        sides = list(zip(self.weights, self.curved, self.wanted, strict=True))
        return np.linalg.solve(sum(w * a for w, a, _ in sides), sum(w * a @ b for w, a, b in sides))

    def cohorts(self, rounds: int, size: int) -> list[list[int]]:
        """Who takes part in each round."""
        draws = np.random.default_rng(5)
        return [list(draws.choice(len(self.weights), size, replace=False)) for _ in range(rounds)]

    def learn(self, algorithm: Algorithm, cohorts: Sequence[Sequence[int]]) -> tuple[Vector, State]:
        """What the algorithm makes of rounds with these cohorts."""
        vector = torch.zeros(len(self.wanted[0]))
        state, memories = algorithm.init(vector), [{} for _ in self.weights]
        for round, cohort in enumerate(cohorts, start=1):
            payloads, weight = [], sum(self.weights[site] for site in cohort)
            for site in cohort:
                y, shared = vector.double(), algorithm.shared(state)
                at = Local(vector.double(), shared, memories[site], self.lr)
                at.loss = self.loss(site, y.numpy())
                at.at = partial(self.gradient, site)
                for _ in range(self.steps[site]):
                    grad = self.gradient(site, y)
                    y = y - at.lr * algorithm.correct(grad, y, at)
                    at.steps += 1
                payload, memories[site] = algorithm.finish(y, at)
                assert payload.keys() == {*algorithm.parts, *algorithm.scalars}
                assert all(payload[name].shape == (1,) for name in algorithm.scalars)
                payloads.append({k: v * self.weights[site] / weight for k, v in payload.items()})
            parts = {name: sum(one[name] for one in payloads) for name in payloads[0]}
            mean = Mean(parts, weight / sum(self.weights))
            vector, state = algorithm.step(vector, state, mean, round)
            assert vector.dtype == torch.float32
        return vector.double().numpy(), state

    def loss(self, site: int, w: Vector) -> float:
        """A site's loss."""
        off = w - self.wanted[site]
        return float(off @ self.curved[site] @ off / 2)

    def grad(self, site: int, w: Vector) -> Vector:
        """The gradient of a site's loss."""
        return self.curved[site] @ (w - self.wanted[site])

    def gradient(self, site: int, w: torch.Tensor) -> torch.Tensor:
        """The same of a tensor."""
        return torch.from_numpy(self.grad(site, w.numpy()))

    def walk(self, site: int, x: Vector) -> Vector:
        """The update of a site's plain local steps, in NumPy."""
        y = x.copy()
        for _ in range(self.steps[site]):
            y -= self.lr * self.grad(site, y)
        return y - x
