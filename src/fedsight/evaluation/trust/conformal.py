"""Prediction sets with a guarantee, from histograms of scores that sites add up.

Split conformal prediction (Vovk et al. 2005): of n held-out images, each has the score of its true
class. A set holds every class whose score is at most the ceil((n + 1) coverage)-th smallest of
these. If a new image is exchangeable with them, its set holds its true class with at least this
probability, however wrong the model is. Sites count scores in bins, and the threshold is the upper
edge of a bin: never below the exact one, so the guarantee stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsight.core.rng import generator

BINS = 4096  # of a score from 0 to 1
PENALTY, FREE = 0.1, 1  # of RAPS, for each rank beyond the first; nothing is fitted to images
SLACK = 1e-9  # so that (9 + 1) * 0.9 is 9 whatever it is in binary
MANY = 1 << 16  # tested images, beyond which what chance adds is within 0.4 points
GRAIN = 256.0  # steps of a logit of 1 that an image's draw follows from


def draws(logits: Tensor) -> Tensor:
    """A number [n] from 0 to 1 that follows from an image's logits [n, classes] alone.

    It breaks the ties of APS as a random number would, and is the same whenever it is asked.
    """
    levels = (logits.double() * GRAIN).round().clamp(-(2.0**40), 2.0**40).to(torch.int64)
    seeded = generator(0, "prediction sets")
    factors = torch.randint(-(1 << 62), 1 << 62, (logits.shape[1],), generator=seeded) * 2 + 1
    hashed = (levels * factors).sum(1)  # modulo 2^64
    hashed = (hashed ^ (hashed >> 29)) * 0x1B873593  # so that near logits have far numbers
    return ((hashed >> 24) & 0xFFFFFF).double() / (1 << 24)


def scores(method: str, probabilities: Tensor, draw: Tensor) -> Tensor:
    """The score of each class [n, classes], 0 to 1: the lower, the sooner is it in the set.

    `lac`: one minus its probability (Sadinle et al. 2019). `aps`: the probability of all likelier
    classes and a share `draw` [n] of its own (Romano et al. 2020, eq. 5). `raps`: with a penalty
    for each rank beyond the first (Angelopoulos et al. 2021, eq. 4), scaled to at most 1.
    """
    p = probabilities.double()
    if method == "lac":
        return (1 - p).clamp(0, 1)
    ordered, order = p.sort(dim=1, descending=True, stable=True)
    found = ordered.cumsum(1) - ordered + draw[:, None] * ordered
    if method == "raps":
        ranks = torch.arange(1, p.shape[1] + 1, dtype=p.dtype)
        most = 1 + PENALTY * max(0, p.shape[1] - FREE)
        found = (found + PENALTY * (ranks - FREE).clamp(min=0)) / most
    return torch.empty_like(found).scatter_(1, order, found).clamp(0, 1)


def histogram(values: Tensor) -> Tensor:
    """How many of the scores [n], 0 to 1, are in each bin: int64 [BINS]."""
    places = (values.double() * BINS).floor().clamp(0, BINS - 1).to(torch.int64)
    return torch.bincount(places, minlength=BINS)


def threshold(counts: Tensor, coverage: float) -> float | None:
    """The largest score that is in a set, from the added histograms [BINS] of held-out images.

    None: there are too few of them, and only sets of all classes have this coverage.
    """
    images = int(counts.sum())
    rank = needed(images, coverage)
    if rank > images:
        return None
    place = int(torch.searchsorted(counts.cumsum(0), rank))
    return (place + 1) / BINS


def needed(images: int, coverage: float) -> int:
    """Which of the smallest scores of so many images is the threshold."""
    return max(1, math.ceil((images + 1) * coverage - SLACK))


def smallest(coverage: float) -> int:
    """The fewest held-out images that can give this coverage: ceil(1 / (1 - coverage)) - 1."""
    return math.ceil(1 / (1 - coverage) - SLACK) - 1


def covered(images: int, coverage: float, tested: int) -> tuple[float, float]:
    """The middle 95 % of the coverage that `tested` images show, if it was ensured by `images`.

    It is beta-binomial with the parameters rank and images + 1 - rank (Vovk 2012), if scores do
    not tie. More than MANY tested images count as so many: sites say how many they have.
    """
    tested = min(tested, MANY)
    a = float(needed(images, coverage))
    b = images + 1 - a
    hits = torch.arange(tested + 1, dtype=torch.float64)
    logs = (
        math.lgamma(tested + 1)
        - torch.lgamma(hits + 1)
        - torch.lgamma(tested - hits + 1)
        + torch.lgamma(hits + a)
        + torch.lgamma(tested - hits + b)
        - math.lgamma(tested + a + b)
        + math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
    )
    below = logs.exp().cumsum(0)
    low, high = (int(torch.searchsorted(below, share)) for share in (0.025, 0.975))
    return low / tested, min(high, tested) / tested
