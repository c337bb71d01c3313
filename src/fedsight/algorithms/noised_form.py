"""Ridge regression from sums in which one image changes a known amount, and from noised ones.

With q the levels of an image, whole numbers of length at most t (`closed_form.shortened`), one
image changes the squares on the diagonal of X'X by q_i^2, the products beside it by q_i q_j, and a
column of X'Y by q_i. In units of sqrt(2) t^2, t^2 and sqrt(2) t these changes together have the
length

    |q|^4 / (2 t^4) + |q|^2 / (2 t^2) <= 1     (its square)

because the sum of q_i^4 and of 2 q_i^2 q_j^2 is |q|^4. Each product stands for two entries of the
matrix, and counts twice there; so it needs less noise than a square. In features of length c, where
t stands for c, this is the bound sqrt(c^4 + c^2) at c = 1, the length at which matrix and columns
have equal shares of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsight.algorithms.closed_form import logit_scale
from fedsight.core.threads import one_thread

LEAST = 1e-3  # of the penalty where there is hardly any noise, in units of the mean eigenvalue
# Of the penalty, in units of the largest eigenvalue of the noise: on validation images the best at
# epsilon 1, 3 and 8, with 64 to 512 features and 1 or 10 sites, or within a point of it.
SHARE = 0.5


def units(top: int) -> dict[str, float]:
    """In what unit each sum is for one image to change all of them together by at most 1."""
    return {
        "squares": math.sqrt(2) * top * top,
        "products": float(top * top),
        "cross": math.sqrt(2) * top,
    }


def matrix(sums: Mapping[str, Tensor]) -> Tensor:
    """X'X [d, d] from its diagonal, `squares` [d], and the triangle above it, `products`."""
    side = len(sums["squares"])
    square = sums["squares"].new_zeros(side, side)
    rows, columns = torch.triu_indices(side, side, 1)
    square[rows, columns] = sums["products"]
    square[columns, rows] = sums["products"]
    square.diagonal().copy_(sums["squares"])
    return square


def bounded_sums(levels: Tensor) -> dict[str, Tensor]:
    """`squares` and `products` of levels [n, d] of whole numbers in float64."""
    square = (levels.T @ levels).to(torch.int64)
    rows, columns = torch.triu_indices(len(square), len(square), 1)
    return {"squares": square.diagonal().clone(), "products": square[rows, columns]}


def penalty(gram: Tensor, strength: float | None, noise: float) -> float:
    """How much is added to the diagonal of `gram` [d, d]; `noise` is the standard deviation of the
    noise in its entries beside the diagonal.

    A strength is in units of the mean of the diagonal. None: as the noise needs, whatever the
    images are. The eigenvalues of the noise reach up to 2 noise sqrt(d) (Wigner 1958), and a
    direction in which features vary less than that says nothing.
    """
    mean = float(gram.diagonal().double().mean().clamp(min=0))
    if strength is not None:
        return max(strength * mean, 1.0)
    return max(SHARE * 2 * noise * math.sqrt(len(gram)), LEAST * mean, 1.0)


def centred(cross: Tensor) -> Tensor:
    """X'(Y - 1 / c) [d, c] of X'Y [d, c], float64: there is no constant feature, and what images
    have in common decides for no class."""
    joint = cross.double()
    return joint - joint.mean(1, keepdim=True)


def fitted(gram: Tensor, cross: Tensor, added: float) -> Tensor:
    """The regression's weights [c, d], float64, with `added` on the diagonal of X'X [d, d].

    Noise can make eigenvalues negative; the nearest matrix without such (Higham 1988) takes its
    place. It computes on one thread, so that equal sums give equal bits.
    """
    with one_thread():
        values, vectors = torch.linalg.eigh(gram.double())
        damped = 1 / (values.clamp(min=0) + added)
        weight: Tensor = vectors @ ((vectors.T @ centred(cross)) * damped[:, None])
        return weight.T


def as_logits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [c, d] and biases [c] of logits, from those of outputs about 1 / c."""
    scale = logit_scale(len(weight))
    return weight * scale, weight.new_zeros(len(weight))
