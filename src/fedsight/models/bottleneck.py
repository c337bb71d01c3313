"""A layer before the head that gives every network the same number of features."""

from __future__ import annotations

from torch import nn

from fedsight.models.before_head import LINEAR, put_before_head

BOTTLENECK = "bottleneck"  # the name of the layer
TENSOR = f".{BOTTLENECK}.weight"  # how the name of its first tensor ends


def narrow(module: nn.Module, head: frozenset[str], features: int, title: str) -> str:
    """Put a linear layer and a ReLU before the head of `module`, which then sees `features` values.

    `head` are the names of the head's parameters. All weights from there on are fresh ones, drawn
    from torch's default generator. Returns the name of the head's new linear layer. Raises
    ModelError unless it was one linear layer.
    """

    def make(old: nn.Linear) -> nn.Sequential:
        made = nn.Sequential()
        made.add_module(BOTTLENECK, nn.Linear(old.in_features, features))
        made.add_module("relu", nn.ReLU())
        made.add_module(LINEAR, nn.Linear(features, old.out_features))
        return made

    return put_before_head(module, head, make, "model.bottleneck", title)
