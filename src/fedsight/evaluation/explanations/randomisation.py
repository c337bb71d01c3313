"""Whether an explanation depends on what the model has learnt (Adebayo et al. 2018,
arXiv:1810.03292): that of the same network with shuffled weights should look different."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedsight.core.rng import generator
from fedsight.evaluation.explanations.faithfulness import gridded

RUNNING = ("running_mean", "running_var")  # what PyTorch's normalisation learns besides
EVEN = 1e-6  # of the hottest: differences that are rounding


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model in which the values of each parameter, and the running means and
    variances of normalisation, are in random order: as large as before, and nothing
    that was learnt is left of them."""
    other = copy.deepcopy(model)
    draws = generator(seed, "explanations", "shuffled")
    with torch.no_grad():
        running = [
            value for name, value in other.named_buffers() if name.rpartition(".")[2] in RUNNING
        ]
        for value in (*other.parameters(), *running):
            order = torch.randperm(value.numel(), generator=draws)
            value.copy_(value.flatten()[order].view_as(value))
    return other


def likeness(heat: Tensor, other: Tensor) -> Tensor:
    """The rank correlation [n] of the cells of heats [n, h, w]; 0 for even heat."""
    return rank_correlation(gridded(heat).flatten(1), gridded(other).flatten(1))


def silent(heat: Tensor) -> Tensor:
    """Where heat [n, h, w] says nothing [n], 1 or 0: all cells are equally hot."""
    cells = gridded(heat).flatten(1)
    low, high = cells.amin(1), cells.amax(1)
    return (high - low <= EVEN * cells.abs().amax(1)).float()


def rank_correlation(values: Tensor, others: Tensor) -> Tensor:
    """That of values [n, k] and others [n, k], row by row [n] (Spearman 1904); 0 for equal ones."""
    first, second = _ranks(values), _ranks(others)
    norms = first.norm(dim=1) * second.norm(dim=1)
    return torch.where(norms > 0, (first * second).sum(1) / norms.clamp(min=1e-12), 0.0)


def _ranks(values: Tensor) -> Tensor:
    """The ranks [n, k] of values [n, k] minus their mean; equal values share the mean of theirs."""
    found = torch.zeros_like(values, dtype=torch.float64)
    for row, into in zip(values, found, strict=True):
        _, place, times = row.unique(return_inverse=True, return_counts=True)
        into.copy_((times.cumsum(0) - (times - 1) / 2)[place])
    return found - found.mean(1, keepdim=True)
