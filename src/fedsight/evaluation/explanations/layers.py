"""The layers of a network that give maps, which Grad-CAM can be made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.evaluation.explanations.scores import Scored

LISTED = 12  # layers in a message
STRETCHED = 1.5  # how far the cells of maps may be from squares of the image
QUERIES = ("qkv", "to_qkv", "q", "q_proj", "query")  # what layers of attention call their parts


def attends(layer: nn.Module) -> bool:
    """Whether the layer is one of attention, of whatever kind."""
    return isinstance(layer, nn.MultiheadAttention) or any(hasattr(layer, one) for one in QUERIES)


def map_layers(scored: Scored, x: Tensor) -> list[str]:
    """The names of the model's layers that give maps [n, c, h, w] of more than one cell, in the
    order in which they do so for images `x` [n, c, h, w].

    What attention makes inside is none, and neither is [n, h, w, c]: maps are shaped as the image.
    """
    return [name for name, maps in _made(scored, x) if maps]


def chosen_layer(scored: Scored, x: Tensor, name: str | None, head: Iterable[str]) -> str:
    """The layer with this name; None: the last one before the head that gives maps.

    `head` are the names of the head's parameters. Raises ModelError for a name that no such layer
    has, with those that have one, for a network without any, and without a name for a network whose
    later layers work on tokens, as transformers do: its maps are only its input in patches.
    """
    made = _made(scored, x)
    known = [one for one, maps in made if maps]
    if name is not None:
        if name in known:
            return name
        raise ModelError(
            f"the network has no layer '{name}' that gives maps",
            f"it has: {_listed(known)}" if known else "choose another method, such as occlusion",
        )
    last = {one.rpartition(".")[0] for one in head}
    above = {one for layer in last for one in _parents(layer)}
    before = [(one, maps) for one, maps in made if one not in above]
    found = [one for one, maps in before if maps]
    if not found:
        raise ModelError(
            "no layer of the network gives maps, and Grad-CAM is made of one",
            "choose another method, such as occlusion",
        )
    if not all(maps for _, maps in before[before.index((found[-1], True)) :]):
        raise ModelError(
            "the later layers of the network work on tokens and give no maps, which Grad-CAM is "
            "made of",
            f"choose another method, such as occlusion, or a layer: {_listed(found)}",
        )
    return found[-1]


def _made(scored: Scored, x: Tensor) -> list[tuple[str, bool]]:
    """The layers that make something of more than one place, in order, and whether it is maps."""
    seen: dict[str, bool] = {}
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, given: object, made: object) -> None:
            if not isinstance(made, Tensor) or made.dim() < 3:
                return
            if made.dim() > 3 and made.shape[2:].numel() == 1:  # pooled
                return
            maps = made.dim() == 4 and _maps(made.shape, x.shape[2:])
            seen[name] = maps and seen.pop(name, True)

        handles.append(layer.register_forward_hook(hook))

    inside: set[str] = set()
    for name, layer in scored.model.named_modules():
        if not inside.isdisjoint(_parents(name)) or attends(layer):
            inside.add(name)
        elif name:
            watch(name, layer)
    try:
        with torch.no_grad():
            scored.watched(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.items())


def _maps(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Whether this is the shape [n, c, h, w] of maps of the image [..., h, w]: about as many pixels
    to a cell each way, and no further from it than if it were [n, h, w, c]."""
    found = _stretch(shape[2:], image)
    return found <= STRETCHED and found <= _stretch(shape[1:3], image)


def _stretch(sides: Sequence[int], image: Sequence[int]) -> float:
    down, across = (pixels / cells for pixels, cells in zip(image, sides, strict=True))
    return max(down, across) / min(down, across)


def _parents(name: str) -> list[str]:
    """The layer itself, and all that it is a part of."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[-LISTED:])
    return shown if len(names) <= LISTED else f"..., {shown}"
