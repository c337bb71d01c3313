"""The features of a network: what its last layer sees of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.types import Batch
from fedsight.models.base import TOGETHER, Network


def linear_head(network: Network) -> nn.Linear:
    """The head of a network as the one linear layer that it is.

    Raises ModelError if it is anything else, or has no bias.
    """
    layers = {name.rpartition(".")[0] for name in network.head}
    found = network.module.get_submodule(layers.pop()) if len(layers) == 1 else None
    if isinstance(found, nn.Linear) and found.bias is not None:
        return found
    raise ModelError(
        "the head of the network is not one linear layer with a bias",
        "choose a network that ends in one, as most classifiers do",
    )


def padded(x: Tensor, count: int = TOGETHER) -> Tensor:
    """`count` images: `x` [b, ...] and black ones; in one memory format, however `x` is stored."""
    made = x.new_zeros((count, *x.shape[1:]))
    if made.dim() == 4:
        made = made.contiguous(memory_format=torch.channels_last)
    made[: len(x)] = x
    return made


def features(network: Network, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """(features [b, d], targets [b, ...]) of the images of `batches`, on the CPU.

    The network sees `network.together` images at a time, the last of them beside black ones,
    because the kernels that compute a batch, and so the last digits, depend on its size. Then the
    features of an image do not depend on the images beside it.
    """
    layer, seen = linear_head(network), []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for batch in batches:
            count = network.together
            for x, y in zip(batch.x.split(count), batch.y.split(count), strict=True):
                network.module(padded(x, count))
                yield seen.pop()[: len(x)].float().cpu(), y.cpu()
    finally:
        handle.remove()
