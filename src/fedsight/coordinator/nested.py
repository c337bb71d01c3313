"""The mean of updates of parts of the model: by value, over the sites that train it."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedsight.algorithms.base import Mean
from fedsight.engines.base import Outcome
from fedsight.program.federation import Federation


def over_trainers(federation: Federation, outcome: Outcome, mean: Mean) -> Mean:
    """`mean`, which divides every value's sum by the weight of all sites of `outcome`, with each
    value divided by the weight of the sites that train it (Diao et al. 2021, equation 3).

    The mean update of a value that none of them trains is zero. Nothing is asked of the sites for
    this: which values a site trains follows from its group, and weights are known.
    """
    weights: dict[int | None, int] = {}
    members: dict[int | None, Federation] = {}
    for one in outcome.accepted:
        member = federation.member(one.client)
        members[member.group] = member
        weights[member.group] = weights.get(member.group, 0) + one.weight
    if all(member.selection is None for member in members.values()):
        return mean
    total = float(sum(weights.values()))
    trained = torch.zeros(federation.layout.travelling.stop, dtype=torch.float64)
    for group, weight in weights.items():
        selection = members[group].selection
        if selection is None:
            trained += weight
        else:
            trained[selection.index] += weight  # each place once
    factor = torch.where(trained > 0, total / trained.clamp(min=1.0), 0.0)
    return replace(mean, parts={**mean.parts, "delta": mean.parts["delta"] * factor})
