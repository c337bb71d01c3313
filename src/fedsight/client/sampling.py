"""The order in which a site's images are seen in a pass over them (`train.sampling`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from fedsight.program.train import Train


def order_of(train: Train, labels: Tensor) -> Callable[[Generator], Tensor]:
    """What draws the positions [n] of a pass, for images with the class numbers `labels` [n]."""
    if train.sampling == "balanced":
        return lambda draws: balanced(labels, draws)
    if train.sampling == "independent":
        return lambda draws: torch.randint(len(labels), (len(labels),), generator=draws)
    return lambda draws: torch.randperm(len(labels), generator=draws)


def balanced(labels: Tensor, draws: Generator) -> Tensor:
    """Positions [n] in which every class that occurs in `labels` [n] comes equally often.

    Where n is not a multiple of the number of classes, some drawn ones come once more. No image of
    a class comes again before all others of the class have come.
    """
    kinds = labels.unique()
    each, more = divmod(len(labels), max(1, len(kinds)))
    lucky = set(torch.randperm(len(kinds), generator=draws)[:more].tolist())
    found = []
    for number, kind in enumerate(kinds):
        mine = (labels == kind).nonzero().flatten()
        due = each + (number in lucky)
        passes = -(-due // len(mine))
        orders = [mine[torch.randperm(len(mine), generator=draws)] for _ in range(passes)]
        found.append(torch.cat([*orders, mine[:0]])[:due])
    chosen = torch.cat(found) if found else labels.new_empty(0)
    return chosen[torch.randperm(len(chosen), generator=draws)]
