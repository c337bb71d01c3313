"""Weights and margins of the classes in the training loss, given or by a site's own counts."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsight.core.errors import Problem

NONE = 1e-8  # stands for a count of 0, where FedLC divides by it
Weight = Annotated[float, Field(gt=0)]
Weights = (
    Literal["site", "federation"] | Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)]
)


def of_counts(labels: Tensor, classes: int) -> tuple[float, ...]:
    """n / (k n_c) for the class c, n_c of n images [n], k classes that occur; 1 for the others.

    Their mean over the images is 1, so the learning rate keeps its meaning (King and Zeng 2001).
    """
    counts = torch.bincount(labels, minlength=classes).tolist()
    present = sum(count > 0 for count in counts)
    return tuple(len(labels) / (present * count) if count else 1.0 for count in counts)


def margins(labels: Tensor, classes: int, strength: float) -> tuple[float, ...]:
    """strength n_c^(-1/4) for the class c with n_c of the images [n]; NONE^(-1/4) for the others.

    Taken from the scores in the loss, they ask for more of a rare class, and classes without images
    are hardly in it, so training does not push their scores down: the calibrated cross-entropy of
    FedLC (Zhang et al. 2022).
    """
    counts = torch.bincount(labels, minlength=classes).tolist()
    return tuple(strength * max(count, NONE) ** -0.25 for count in counts)


def vector(weights: Weights | None, like: Tensor) -> Tensor | None:
    """Given weights as a tensor [classes] with the type and device of `like`."""
    if weights is None or isinstance(weights, str):
        return None
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


def problems(weights: Weights | None, own_loss: bool) -> list[Problem]:
    """What is wrong with them before any data are read; `own_loss`: the loss ignores them."""
    where = "task.class_weights"
    if weights is None:
        return []
    if weights == "federation":
        cause = (
            "a site does not know how many images of each class the others have, and its counts "
            "are its own: they reach the coordinator only where the owner allows it"
        )
        cure = 'set "site" to weigh by the site\'s own counts, or write one number for each class'
        return [Problem(where, cause, cure)]
    if own_loss:
        cause = "the task has a loss of its own, which does not use them"
        return [Problem(where, cause, "leave it out, and weigh the classes in the loss")]
    return []


def wrong_number(weights: Weights | None, classes: int) -> list[Problem]:
    """A problem unless there is one weight for each class."""
    if weights is None or isinstance(weights, str) or len(weights) == classes:
        return []
    cause = f"{len(weights)} weights are given, but the data have {classes} classes"
    return [Problem("task.class_weights", cause, "give one for each, in the order of the classes")]
