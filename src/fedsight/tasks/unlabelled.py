"""Losses in which the classes that an image's site does not label take no part.

A site that never annotated a class must not teach that its images do not show it. Which classes
those are is a setting of the site, so no image has a say in the loss of another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsight.core.types import Batch


def masked(logits: Tensor, batch: Batch) -> Tensor:
    """Logits [b, classes] with minus infinity for the classes not labelled at an image's site.

    A class that the image has, by its number or in soft targets, stays.
    """
    hidden, y = batch.unlabelled, batch.y
    if hidden is None:
        return logits
    classes = torch.arange(logits.shape[1], device=y.device)  # not F.one_hot: it has no vmap
    has = y > 0 if y.is_floating_point() else y[:, None] == classes
    return logits.masked_fill(hidden & ~has, -torch.inf)


def entropy(logits: Tensor, y: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy [b] of `masked` logits [b, classes], class numbers [b] or soft targets.

    It is that of `torch.nn.functional.cross_entropy` over the classes that are left: the smoothing
    is spread over them alone.
    """
    there = logits > -torch.inf
    classes = torch.arange(logits.shape[1], device=y.device)
    targets = y if y.is_floating_point() else (y[:, None] == classes).to(logits.dtype)
    even = there.to(logits.dtype) / there.sum(1, keepdim=True)
    targets = (1 - smoothing) * targets + smoothing * even
    surprise = -torch.log_softmax(logits, dim=1).masked_fill(~there, 0.0)
    if weights is not None:
        targets = targets * weights
    return (targets * surprise).sum(1)


def known_shares(probabilities: Tensor, batch: Batch) -> Tensor:
    """Probabilities [b, classes] given that an image shows a class that its site labels."""
    if batch.unlabelled is None:
        return probabilities
    left = probabilities.masked_fill(batch.unlabelled, 0.0)
    return left / left.sum(1, keepdim=True).clamp(min=1e-12)


def into_background(
    logits: Tensor, y: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [b, classes, h, w] and truths [b, h, w] in which the `hidden` [b, classes] are
    background.

    Where a site does not label a class, a pixel of it is called background. So the probability of
    background there is that of any of these (marginal loss: Shi et al. 2021, arXiv:2007.03868,
    equation 4). Also returns which classes are labelled [b, classes, 1, 1]; None: all of them.
    """
    if hidden is None:
        return logits, y, None
    hidden = hidden[:, :, None, None]
    background = logits.masked_fill(~hidden, -torch.inf)
    background = torch.cat([logits[:, :1], background[:, 1:]], dim=1).logsumexp(1, keepdim=True)
    left = logits.masked_fill(hidden, -torch.inf)
    classes = torch.arange(logits.shape[1], device=y.device)[:, None, None]
    shown = ((y[:, None] == classes) & hidden).any(1)
    return torch.cat([background, left[:, 1:]], dim=1), torch.where(shown, 0, y), ~hidden
