"""Puts layers before the head of a network, if that is one linear layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedsight.core.errors import ModelError

LINEAR = "linear"  # the name of the head's linear layer, after the layers that were put before it


def put_before_head(
    module: nn.Module,
    head: frozenset[str],
    make: Callable[[nn.Linear], nn.Sequential],
    setting: str,
    title: str,
) -> str:
    """Replace the head of `module` by what `make` makes of it, whose last layer is called `LINEAR`.

    `head` are the names of the head's parameters; `setting` is what asks for the layers, and
    `title` what the network is called. Returns the name of the new linear layer. Raises ModelError
    unless the head was one linear layer.
    """
    layers = {name.rpartition(".")[0] for name in head}
    at = layers.pop() if len(layers) == 1 else ""
    old = module.get_submodule(at) if at else None
    if not isinstance(old, nn.Linear):
        raise ModelError(
            f"{setting}: the head of {title} is not one linear layer",
            f"leave {setting} out, or choose a network that ends in one linear layer",
        )
    parent, _, name = at.rpartition(".")
    setattr(module.get_submodule(parent), name, make(old))
    return f"{at}.{LINEAR}"
