"""Non-maximum suppression in ONNX: a torch operator, and the nodes that it becomes in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsight.models.heatmap import kept_boxes


@torch.library.custom_op("fedsight::kept_boxes", mutates_args=())
def recorded(boxes: Tensor, sure: Tensor, labels: Tensor, classes: int, overlap: float) -> Tensor:
    """`kept_boxes` as one operator, which an exporter records as it is."""
    return kept_boxes(boxes, sure, labels, classes, overlap)


@recorded.register_fake
def _(boxes: Tensor, sure: Tensor, labels: Tensor, classes: int, overlap: float) -> Tensor:
    return torch.empty_like(labels, dtype=torch.bool)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: the operator as ONNX's NonMaxSuppression, class by class."""
    import onnx
    from onnxscript import opset18

    op: Any = opset18  # its types know no Python constants, which it takes

    def kept(boxes: Any, sure: Any, labels: Any, classes: int, overlap: float) -> Any:
        numbers = onnx.helper.make_tensor("classes", 7, [classes, 1], [*range(classes)])
        mine = op.Equal(op.Unsqueeze(labels, [1]), op.Constant(value=numbers))
        zero = op.Constant(value_float=0.0)
        scores = op.Where(mine, op.Unsqueeze(sure, [1]), zero)  # [b, classes, m]
        most = op.Constant(value_ints=[2**31 - 1])
        found = op.NonMaxSuppression(
            boxes, scores, most, op.Constant(value_float=overlap), op.Constant(value_float=0.0)
        )  # [kept, 3]: image, class, box
        places = op.Gather(found, [0, 2], axis=1)
        none = op.Expand(op.Constant(value_int=0), op.Shape(sure))
        ones = op.Expand(op.Constant(value_int=1), op.Slice(op.Shape(found), [0], [1]))
        return op.Cast(op.ScatterND(none, places, ones), to=9)

    return {torch.ops.fedsight.kept_boxes.default: kept}
