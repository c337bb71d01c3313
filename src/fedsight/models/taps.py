"""A head that sees the pooled outputs of inner layers: several scales, where the last has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.registry import nearest
from fedsight.models.norms import is_batch_norm

HEAD = "head"  # the name of the linear layer
BODY = "features.body"  # and of what is left of the network


class PooledLayers(nn.Module):
    """What `pooled` leaves of the outputs of some layers, side by side: [b, d].

    `body` is the network up to the last of them; it gives their outputs by name, in the order in
    which it computes them. `grids` has a grid for each name.
    """

    def __init__(self, body: nn.Module, grids: Mapping[str, int]) -> None:
        super().__init__()
        self.body = body
        self.grids = dict(grids)

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] for images [b, c, h, w]."""
        maps = self.body(x).items()
        return torch.cat([pooled(one, self.grids[layer]) for layer, one in maps], dim=1)


def pooled(one: Tensor, grid: int = 1) -> Tensor:
    """A map [b, c, h, w] without its height and width: [b, c * width_of(grid)].

    The mean and the maximum of each channel; with a grid of g > 1 also its mean in each of g times
    g cells, row after row: a spatial pyramid (Lazebnik, Schmid and Ponce 2006). Where g does not
    divide a side, neighbouring cells share a line.
    """
    cells = _cells(one, grid) if grid > 1 else ()
    return torch.cat(
        [one.mean((2, 3)), one.amax((2, 3)), *(cell.mean((2, 3)) for cell in cells)], dim=1
    )


def width_of(grid: int) -> int:
    """How many values of each channel `pooled` gives."""
    return 2 + (grid * grid if grid > 1 else 0)


def _cells(one: Tensor, grid: int) -> Iterator[Tensor]:
    """The cells of a map, as adaptive pooling divides it.

    That cannot be exported where the number of cells does not divide a side; slices can.
    """
    rows, columns = (_bounds(side, grid) for side in one.shape[2:])
    for top, bottom in rows:
        for left, right in columns:
            yield one[:, :, top:bottom, left:right]


def _bounds(side: int, cells: int) -> list[tuple[int, int]]:
    return [(k * side // cells, -(-(k + 1) * side // cells)) for k in range(cells)]


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
    module: nn.Module,
    layers: Sequence[str],
    grids: Sequence[int],
    image: tuple[int, int, int],
    classes: int,
    title: str,
) -> nn.Module:
    """A network whose head, a linear layer with fresh weights, sees `layers` of `module`.

    `image` is (channels, height, width), `layers` are names of modules that give maps
    [b, c, h, w], of which the head sees what `pooled` leaves, with a grid for each where `grids`
    has them; what comes after the last is left out. Raises ModelError for a layer that is not
    there, gives anything else or is smaller than its grid, and for a network that cannot be cut.
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
        inner = PooledLayers(body, dict(zip(layers, grids or [1] * len(layers), strict=True)))
        with torch.no_grad():
            maps = body.eval()(torch.zeros(2, *image)).items()
            shapes = {layer: tuple(one.shape) for layer, one in maps}
    except Exception as error:  # third-party code: any exception means that it cannot be traced
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model.taps: the network '{title}' cannot be cut at its layers: {why}",
            "leave model.taps out, or choose another network",
        ) from error
    width = 0
    for layer, grid in inner.grids.items():
        shape = shapes[layer]
        _require_map(layer, shape, grid)
        width += shape[1] * width_of(grid)
    network = nn.Sequential()
    network.add_module("features", inner)
    network.add_module(HEAD, nn.Linear(width, classes))
    return network.train(module.training)


def _require_map(layer: str, shape: tuple[int, ...], grid: int) -> None:
    if len(shape) != 4:
        raise ModelError(
            f"model.taps: the layer '{layer}' gives {list(shape)}, not a map [b, c, h, w]",
            "name layers before the last pooling",
        )
    height, width = shape[2:]
    if grid > min(height, width):
        raise ModelError(
            f"model.grids: the map of the layer '{layer}' has {height} x {width} values, too few "
            f"for a grid of {grid} x {grid} cells",
            "set a smaller grid or a larger data.size, or name an earlier layer in model.taps",
        )
