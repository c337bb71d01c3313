"""The layers of a network that give maps, which Grad-CAM can be made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.evaluation.explanations.scores import Scored

LISTED = 12  # layers in a message


def map_layers(scored: Scored, x: Tensor) -> list[str]:
    """The names of the model's layers that give maps [n, c, h, w] of more than one cell, in the
    order in which they do so for images `x` [n, c, h, w]."""
    seen: list[str] = []
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, given: object, made: object) -> None:
            if isinstance(made, Tensor) and made.dim() == 4 and made.shape[2:].numel() > 1:
                seen.append(name)

        handles.append(layer.register_forward_hook(hook))

    for name, layer in scored.model.named_modules():
        if name:
            watch(name, layer)
    try:
        with torch.no_grad():
            scored.watched(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(seen))


def chosen_layer(scored: Scored, x: Tensor, name: str | None, head: Iterable[str]) -> str:
    """The layer with this name; None: the last one before the head that gives maps.

    `head` are the names of the head's parameters. Raises ModelError for a name that no such layer
    has, with those that have one, and for a network without any.
    """
    known = map_layers(scored, x)
    if name is not None:
        if name in known:
            return name
        raise ModelError(
            f"the network has no layer '{name}' that gives maps",
            f"it has: {_listed(known)}" if known else "choose another method, such as occlusion",
        )
    last = {one.rpartition(".")[0] for one in head}
    above = {one for layer in last for one in _parents(layer)}
    before = [one for one in known if one not in above]
    if before:
        return before[-1]
    raise ModelError(
        "no layer of the network gives maps, and Grad-CAM is made of one",
        "choose another method, such as occlusion",
    )


def _parents(name: str) -> list[str]:
    """The layer itself, and all that it is a part of."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[-LISTED:])
    return shown if len(names) <= LISTED else f"..., {shown}"
