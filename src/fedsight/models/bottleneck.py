"""A layer before the head that gives every network the same number of features."""

from __future__ import annotations

from torch import nn

from fedsight.core.errors import ModelError

BOTTLENECK = "bottleneck"  # the name of the layer
LINEAR = "linear"  # and of the head's linear layer after it
TENSOR = f".{BOTTLENECK}.weight"  # how the name of its first tensor ends


def narrow(module: nn.Module, head: frozenset[str], features: int, title: str) -> str:
    """Put a linear layer and a ReLU before the head of `module`, which then sees `features` values.

    `head` are the names of the head's parameters. All weights from there on are fresh ones, drawn
    from torch's default generator. Returns the name of the head's new linear layer. Raises
    ModelError unless it was one linear layer.
    """
    layers = {name.rpartition(".")[0] for name in head}
    at = layers.pop() if len(layers) == 1 else ""
    old = module.get_submodule(at) if at else None
    if not isinstance(old, nn.Linear):
        raise ModelError(
            f"model.bottleneck: the head of {title} is not one linear layer",
            "leave model.bottleneck out, or choose a network that ends in one linear layer",
        )
    made = nn.Sequential()
    made.add_module(BOTTLENECK, nn.Linear(old.in_features, features))
    made.add_module("relu", nn.ReLU())
    made.add_module(LINEAR, nn.Linear(features, old.out_features))
    parent, _, name = at.rpartition(".")
    setattr(module.get_submodule(parent), name, made)
    return f"{at}.{LINEAR}"
