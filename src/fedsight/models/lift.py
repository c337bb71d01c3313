"""Random features: a frozen layer with public, seeded weights between the features and the head.

It is linear, which keeps the angles between images in few values (Johnson and Lindenstrauss 1984),
or followed by a ReLU, which makes many values that a linear head combines into curved borders
(Rahimi and Recht 2007). Each image's values are scaled to a mean square of 1, so that all images
count the same in a sum of their products, however bright they are.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsight.core.rng import generator
from fedsight.models.before_head import LINEAR, put_before_head

LIFT = "lift"  # the name of the frozen layer
TENSOR = f".{LIFT}.directions"  # how the name of its only tensor ends

Kind = Literal["linear", "relu"]


class Lift(nn.Module):
    """[b, d] -> [b, m]: products with m directions of length 1, scaled to a mean square of 1.

    Features that are all zero stay so.
    """

    def __init__(self, inputs: int, outputs: int, kind: Kind, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(outputs, inputs, generator=generator(seed, LIFT))
        self.directions = nn.Parameter(F.normalize(drawn), requires_grad=False)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """[b, m] for features [b, d]."""
        found = F.linear(x, self.directions)
        if self.kind == "relu":
            found = found.relu()
        return F.normalize(found) * math.sqrt(found.shape[1])


def lift(
    module: nn.Module, head: frozenset[str], outputs: int, kind: Kind, seed: int, title: str
) -> str:
    """Put random features before the head of `module`, whose weights are then fresh ones.

    `head` are the names of the head's parameters. Returns the name of its new linear layer. Raises
    ModelError unless it was one linear layer.
    """

    def make(old: nn.Linear) -> nn.Sequential:
        fresh = nn.Linear(outputs, old.out_features)
        bound, draws = 1 / math.sqrt(outputs), generator(seed, LIFT, LINEAR)
        with torch.no_grad():
            fresh.weight.uniform_(-bound, bound, generator=draws)
            fresh.bias.zero_()
        made = nn.Sequential()
        made.add_module(LIFT, Lift(old.in_features, outputs, kind, seed))
        made.add_module(LINEAR, fresh)
        return made

    return put_before_head(module, head, make, "model.lift", title)
