"""Temperature scaling from sums: each site adds up losses, and the coordinator compares them.

A temperature divides all logits of a model (Guo et al. 2017, arXiv:1706.04599, section 4.2). It
changes how sure the model is of its answers, not which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

UNIT = 1 << 24  # of a loss that is 1: sums of whole numbers are exact
MOST = 64.0  # nats that one image counts for at most
OCTAVES = 4.0  # temperatures from 2^-OCTAVES to 2^OCTAVES
POINTS = 17  # temperatures that are compared at once
ROUNDS = 3  # each looks more closely where the last one found the least loss


def losses(logits: Tensor, labels: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The sum of the logarithmic losses of images with logits [n, classes] and class numbers [n]
    at each temperature: int64 [temperatures], in units of 1 / UNIT."""
    found, logits = torch.zeros(len(temperatures), dtype=torch.int64), logits.double()
    for at, temperature in enumerate(temperatures):
        each = F.cross_entropy(logits / temperature, labels, reduction="none")
        found[at] = whole(each.clamp(max=MOST))
    return found


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities [n, classes] of logits [n, classes], float64."""
    return torch.softmax(logits.double() / temperature, dim=1)


def brier(probabilities: Tensor, labels: Tensor) -> int:
    """The sum of the squared distances of probabilities [n, classes] from the truth, in units of
    1 / UNIT (Brier 1950)."""
    truth = F.one_hot(labels, probabilities.shape[1])
    return whole((probabilities.double() - truth).square().sum(1))


def whole(values: Tensor) -> int:
    """The sum of values [n], each as a whole number of units."""
    return int((values * UNIT).round().to(torch.int64).sum())


def best_temperature(ask: Callable[[Sequence[float]], Tensor]) -> float:
    """The temperature with the least loss; `ask` gives the sums over all sites at temperatures.

    A loss has one lowest point over the temperature's logarithm, so each round of questions can
    look between the neighbours of the best one so far.
    """
    middle, half = 0.0, OCTAVES
    for _ in range(ROUNDS):
        powers = torch.linspace(middle - half, middle + half, POINTS, dtype=torch.float64)
        powers = powers.clamp(-OCTAVES, OCTAVES)
        found = ask([2.0 ** float(power) for power in powers])
        middle = float(powers[int(found.argmin())])
        half /= (POINTS - 1) / 2
    return float(2.0**middle)
