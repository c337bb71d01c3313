"""The classes that a file of weights was trained for, where the file or its run folder says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fedsight.models.base import Model, Network

_SHOWN = 4  # names in a note


def classes_of(path: Path) -> tuple[str, ...] | None:
    """The classes in the order of the head's outputs; None if nothing states them.

    An exported .safetensors file has them in its metadata, and `model.safetensors` of a run in the
    run.json beside it.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("labels")
        if text is not None:
            return _names(json.loads(text))
        if path.name == "model.safetensors":
            return _names(json.loads((path.parent / "run.json").read_bytes())["classes"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass
    return None


def _names(found: object) -> tuple[str, ...] | None:
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None


def with_head_for(
    network: Network, fresh: Network, theirs: tuple[str, ...], ours: tuple[str, ...]
) -> Network:
    """`network` with the head of `fresh` if its weights were trained for other classes than ours.

    Outputs are told apart by position alone: as many other classes, or the same in another order,
    would take over a head that means something else. A note says so.
    """
    if theirs == ours or not network.head:
        return network
    if len(theirs) == len(ours):
        now, new = network.module.state_dict(), fresh.module.state_dict()
        with torch.no_grad():
            for name in network.head:
                now[name].copy_(new[name])
    said = f"the weights were trained for {_listed(theirs)}, and these data have {_listed(ours)}"
    if sorted(theirs) == sorted(ours):
        said = f"the weights were trained for the classes in another order: {_listed(theirs)}"
    note = f"the head is newly initialised and has to be learnt: {said}"
    kept = tuple(one for one in network.notes if "the head is newly initialised" not in one)
    return replace(network, notes=(*kept, note))


def trained_for(model: Model) -> tuple[str, ...] | None:
    """The classes that the model's weights were trained for, if it starts from such weights."""
    return None if model.weights is None else classes_of(model.weights)


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
