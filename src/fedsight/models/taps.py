"""A head that sees the pooled outputs of inner layers: several scales, where the last has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.registry import nearest
from fedsight.models.norms import is_batch_norm

HEAD = "head"  # the name of the linear layer
BODY = "features.body"  # and of what is left of the network


class PooledLayers(nn.Module):
    """The mean and the maximum over the image of each channel of some layers: [b, d].

    `body` is the network up to the last of them.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] for images [b, c, h, w]."""
        return pooled(self.body(x).values())


def pooled(maps: Iterable[Tensor]) -> Tensor:
    """The mean and the maximum of each channel of maps [b, c, h, w], one after another: [b, d]."""
    both = [(one.mean((2, 3)), one.amax((2, 3))) for one in maps]
    return torch.cat([part for pair in both for part in pair], dim=1)


def _mark(body: Any) -> None:
    """Pass the output of each tapped layer through a module that leaves it as it is.

    Where the layers up to a tap are frozen, the network can then be resumed there (`prefix`): the
    head gets what was kept as well as the next layer.
    """
    for graph in (body.train_graph, body.eval_graph):
        (end,) = (node for node in graph.nodes if node.op == "output")
        for number, node in enumerate(tuple(end.args[0].values())):
            with graph.inserting_after(node):
                mark = graph.create_node("call_module", f"tap{number}", (node,))
            node.replace_all_uses_with(
                mark, delete_user_cb=lambda user, mark=mark: user is not mark
            )
            body.add_module(f"tap{number}", nn.Identity())
    body.train(body.training)  # compiles the graph anew


def tapped(
    module: nn.Module, layers: Sequence[str], image: tuple[int, int, int], classes: int, title: str
) -> nn.Module:
    """A network whose head, a linear layer with fresh weights, sees `layers` of `module`.

    `image` is (channels, height, width), `layers` are names of modules that give maps
    [b, c, h, w]; what comes after the last of them is left out. Raises ModelError for a layer that
    is not there or gives anything else, and for a network that cannot be cut.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    known = dict(module.named_modules())
    for layer in layers:
        if layer not in known or not layer:
            stems = [name for name in known if name.count(".") < 2 and name]
            cause = f"model.taps: the network '{title}' has no layer '{layer}'"
            raise ModelError(cause, nearest(layer, stems))
    # Whatever holds tensors stays a module, so that its norms are known as such.
    whole = {type(one) for one in known.values() if is_batch_norm(one) or not any(one.children())}
    try:
        body: Any = create_feature_extractor(
            module, list(layers), tracer_kwargs={"leaf_modules": list(whole)}
        )
        _mark(body)
        inner = PooledLayers(body)
        with torch.no_grad():
            maps = body.eval()(torch.zeros(2, *image)).values()
            shapes = [tuple(one.shape) for one in maps]
    except Exception as error:  # third-party code: any exception means that it cannot be traced
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model.taps: the network '{title}' cannot be cut at its layers: {why}",
            "leave model.taps out, or choose another network",
        ) from error
    for layer, shape in zip(layers, shapes, strict=True):
        if len(shape) != 4:
            raise ModelError(
                f"model.taps: the layer '{layer}' gives {list(shape)}, not a map [b, c, h, w]",
                "name layers before the last pooling",
            )
    network = nn.Sequential()
    network.add_module("features", inner)
    network.add_module(HEAD, nn.Linear(2 * sum(shape[1] for shape in shapes), classes))
    return network.train(module.training)
