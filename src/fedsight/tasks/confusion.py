"""Confusion matrices and losses by class, as sums that add over batches and sites."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsight.core.types import Metrics, Sum


def confusion(truth: Tensor, answers: Tensor, losses: Tensor, classes: int) -> Metrics:
    """`confusion` [true, predicted] counts and `loss` [true] sums, of class numbers [b] int64 and
    losses [b]."""
    # On the CPU, since not every device has float64.
    truth, answers, losses = truth.cpu(), answers.cpu(), losses.cpu()
    pairs = truth * classes + answers
    counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    loss = torch.zeros(classes, dtype=torch.float64).index_add_(0, truth, losses.double())
    return {
        "confusion": Sum(counts.double().numpy(), len(truth)),
        "loss": Sum(loss.numpy(), len(truth)),
    }
