"""Ridge regression solved from sums of products of integers, which are exact however they came."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsight.core.errors import SiteError
from fedsight.core.threads import one_thread

CERTAIN = 0.99  # the probability that an output of 1 stands for
ROUNDING = 1e-9  # of a matrix's trace: more than float64 rounds it by
STRENGTHS = torch.logspace(-7, 1, 33, dtype=torch.float64)  # that "auto" chooses from


def triangle(levels: Tensor) -> Tensor:
    """The upper triangle of X'X as int64 [(d + 1)(d + 2) / 2]; X is `levels` [n, d] and a 1.

    `levels` are whole numbers in float64; their products are exact while the sum of n of them is
    below 2^53.
    """
    full = torch.cat([levels, levels.new_ones(len(levels), 1)], dim=1)
    return upper((full.T @ full).to(torch.int64))


def upper(square: Tensor) -> Tensor:
    """The upper triangle of [m, m], row after row."""
    rows, columns = torch.triu_indices(*square.shape, device=square.device)
    return square[rows, columns]


def symmetric(values: Tensor, side: int) -> Tensor:
    """The symmetric matrix [side, side] whose upper triangle is `values`."""
    square = values.new_zeros(side, side)
    rows, columns = torch.triu_indices(side, side)
    square[rows, columns] = values
    square[columns, rows] = values
    return square


def are_sums(gram: Tensor, cross: Tensor, images: int, top: int) -> bool:
    """Whether `gram` and `cross`, as `solve` takes them, are those of at most so many images.

    Each image has one label, and features that are whole numbers from 0 to `top`. What is checked
    follows from that: the sums of the features, by class and over all, agree, no product exceeds
    what its factors allow, and X'X is positive semidefinite.
    """
    count, sums, labels = int(gram[-1, -1]), gram[-1, :-1], cross[-1]
    if not (0 <= count <= images and bool((cross >= 0).all()) and bool((gram >= 0).all())):
        return False
    if bool((labels > count).any()) or int(labels.sum()) != count:
        return False
    if bool((cross[:-1] > top * labels).any()) or bool((cross[:-1].sum(1) != sums).any()):
        return False
    if bool((gram[:-1, :-1] > top * torch.minimum(sums, sums[:, None])).any()):
        return False
    if bool((gram.diagonal()[:-1] < sums).any()):  # the square of a whole number is no less
        return False
    square = gram.double()
    square.diagonal().add_(ROUNDING * float(square.diagonal().sum()) + ROUNDING)
    return int(torch.linalg.cholesky_ex(square).info) == 0


def solve(gram: Tensor, cross: Tensor, strength: float | None) -> tuple[Tensor, Tensor]:
    """Weights [c, d] and biases [c] of the logits of c classes, float64.

    `gram` is X'X as int64 [d + 1, d + 1], whose last row and column are those of the constant 1;
    `cross` is X'Y as int64 [d + 1, c], with Y one column for each class, 1 where an image has it.

    The regression (Hoerl and Kennard 1970) does not penalise the bias. Its strength is in units of
    the features' mean variance; None: the one of STRENGTHS with the least generalised
    cross-validation (Golub, Heath and Wahba 1979), which the sums suffice for. Its outputs estimate
    probabilities; as logits they are scaled so that the softmax of an output of exactly 1 for one
    class and 0 for the others is CERTAIN. (The variance of the residuals, which would follow if
    they were normal, makes the head several times too sure.)

    It computes on one thread, so that equal sums give equal bits. Raises SiteError if there is no
    image, or no feature varies.
    """
    with one_thread():
        sums, totals = gram.double(), cross.double()
        images = sums[-1, -1]
        if not images > 0:
            raise SiteError("no site has sent sums of any image", "look at the sites' logs")
        means, shares = sums[-1, :-1] / images, totals[-1] / images
        spread = sums[:-1, :-1] - torch.outer(means, means) * images
        joint = totals[:-1] - torch.outer(means, shares) * images
        values, vectors = torch.linalg.eigh(spread)
        values = values.clamp(min=0)
        varied = float((totals[-1] - shares * totals[-1]).sum())
        if not values[-1] > 0:
            raise SiteError(
                "the head has no closed form: all images have equal features",
                "choose another network or other images, or set algorithm.low and algorithm.high "
                "to the range of the features",
            )
        rotated = vectors.T @ joint
        known = STRENGTHS if strength is None else torch.tensor([strength], dtype=torch.float64)
        penalties = known[:, None] * values.mean()  # [s, 1]
        damped = 1 / (values + penalties)  # [s, d]
        explained = ((2 * damped - values * damped**2) * rotated.square().sum(1)).sum(1)
        residual = (varied - explained).clamp(min=0)  # [s]
        freedom = 1 - ((values * damped).sum(1) + 1) / images
        valid = torch.where(freedom > 0, residual / freedom**2, torch.inf)
        best = int(valid.argmin())
        weight = (vectors @ (rotated * damped[best, :, None])).T
        bias = shares - weight @ means
        scale = logit_scale(len(shares))
        return weight * scale, bias * scale


def logit_scale(classes: int) -> float:
    """What outputs of the regression are multiplied by to be logits of so many classes."""
    return math.log(CERTAIN / (1 - CERTAIN) * max(1, classes - 1))
