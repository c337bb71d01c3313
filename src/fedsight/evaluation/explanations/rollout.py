"""Attention rollout (Abnar and Zuidema 2020): how much of each patch reaches the answer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.evaluation.explanations.layers import attends
from fedsight.evaluation.explanations.scores import Scored

PLAIN = ("timm.layers.attention", "timm.models.vision_transformer")  # where timm keeps it
KEPT = 0.5  # of a token passes a layer beside the attention


def readable(model: nn.Module) -> bool:
    """Whether rollout can read every layer of attention in the model, and there is one.

    It reads PyTorch's and timm's plain ones; others add to it what is not seen here, such as where
    tokens are to each other.
    """
    found = _layers(model)
    return bool(found) and all(map(_plain, found))


def rollout(scored: Scored, x: Tensor) -> Tensor:
    """The share of each patch [n, rows, columns] in what the head sees of images [n, c, h, w].

    Raises ModelError where layers attend to parts of the image only, or the patches are not a grid.
    """
    made: list[Tensor] = []
    with ExitStack() as stack, torch.no_grad():
        for layer in _layers(scored.model):
            stack.callback(_watch(layer, made).remove)
        scored.watched(x)
    if not made or any(one.shape != made[0].shape for one in made) or len(made[0]) % len(x):
        raise ModelError(
            "attention rollout needs layers that each attend to the whole image, and this "
            "network's do not",
            "choose another method, such as occlusion",
        )
    itself = torch.eye(made[0].shape[1])
    total = itself
    for attention in made:
        total = (KEPT * itself + (1 - KEPT) * attention) @ total
    model = _transformer(scored.model)
    ahead, grid = _grid(model, len(itself), x)
    by_token = ahead > 0 and getattr(model, "global_pool", "token") == "token"
    seen = total[:, 0, ahead:] if by_token else total[:, ahead:, ahead:].mean(1)
    return scored.folded(seen.reshape(len(seen), *grid))


def _layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if attends(layer)]


def _plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.MultiheadAttention):
        return layer.bias_k is None and not layer.add_zero_attn and layer.in_proj_weight is not None
    kind = type(layer)
    return kind.__name__ == "Attention" and kind.__module__ in PLAIN


def _watch(layer: nn.Module, made: list[Tensor]) -> Any:
    """A handle of the hook that appends the layer's attention [n, tokens, tokens]."""
    if isinstance(layer, nn.MultiheadAttention):
        return layer.register_forward_pre_hook(
            lambda _, given, named: made.append(_of_torch(layer, given, named)), with_kwargs=True
        )
    return layer.register_forward_pre_hook(lambda _, given: made.append(_of_timm(layer, given[0])))


def _of_torch(layer: nn.MultiheadAttention, given: Any, named: Any) -> Tensor:
    values = [*given[:3], *(named[key] for key in ("query", "key", "value")[len(given) :])]
    query, key = values[0], values[1]
    width, heads = layer.embed_dim, layer.num_heads
    assert layer.in_proj_weight is not None
    first, second = layer.in_proj_weight[:width], layer.in_proj_weight[width : 2 * width]
    shift = (None, None) if layer.in_proj_bias is None else layer.in_proj_bias.split(width)[:2]
    q, k = nn.functional.linear(query, first, shift[0]), nn.functional.linear(key, second, shift[1])
    if not layer.batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    return _attention(*(one.unflatten(2, (heads, -1)).transpose(1, 2) for one in (q, k)))


def _of_timm(layer: Any, x: Tensor) -> Tensor:
    if x.dim() != 3:  # windows, or maps
        return torch.zeros(0)
    q, k, _ = layer.qkv(x).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = (
        getattr(layer, name, nn.Identity())(one) for name, one in (("q_norm", q), ("k_norm", k))
    )
    return _attention(q, k)


def _attention(q: Tensor, k: Tensor) -> Tensor:
    """Softmax of scaled products [n, heads, tokens, d], the mean of the heads."""
    return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1).mean(1).float().cpu()


def _transformer(model: nn.Module) -> nn.Module:
    """The part of the model that makes patches of images."""
    made = ("patch_embed", "class_token")  # timm's, and torchvision's
    found = (one for one in model.modules() if any(hasattr(one, name) for name in made))
    return next(found, model)


def _grid(model: nn.Module, tokens: int, x: Tensor) -> tuple[int, tuple[int, int]]:
    """How many tokens come before those of the patches, and the rows and columns of these."""
    known: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if known is None:
        patch = getattr(model, "patch_size", None)  # torchvision's
        known = None if not isinstance(patch, int) else (x.shape[2] // patch, x.shape[3] // patch)
    if known is not None and (ahead := tokens - known[0] * known[1]) >= 0:
        return ahead, (int(known[0]), int(known[1]))
    raise ModelError(
        "the patches of this network are not a grid that attention rollout knows",
        "choose another method, such as occlusion",
    )
