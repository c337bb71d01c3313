"""Tests, when a network is built, whether it accepts images of the configured size."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from fedsight.core.errors import ModelError
from fedsight.core.no_memory import ran_out

_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)
_LARGE = 4_000_000  # parameters
_NO_ROOM = "no memory"
_COSTLY = 150_000_000_000  # parameters times pixels: with more, two passes compute for long


OutputShape = tuple[int | None, ...]  # a shape without the batch dimension; None: any size


def probe(module: nn.Module, image: tuple[int, int, int], answer: OutputShape, title: str) -> None:
    """Run `module` on images of this shape in both modes; weights and statistics do not change.

    `image` is (channels, height, width). The batch has two images: BatchNorm in training mode
    rejects a single image whose map has shrunk to one pixel. Raises ModelError naming the
    smallest square size that fits, if one does, or when the output is not [2, *answer], or when
    there is too little memory for them.
    """
    channels, height, width = image
    trouble = _attempt(module, image, answer)
    if trouble is None:
        return
    if trouble == _NO_ROOM:
        raise ModelError(
            f"two images of {height} x {width} pixels in the network '{title}' need more memory "
            "than there is",
            "set a smaller data.size, or choose another network",
        )
    cause = f"the network '{title}' cannot take images of {height} x {width} pixels: {trouble}"
    for size in _SIZES:
        if size > min(height, width) and _attempt(module, (channels, size, size), answer) is None:
            raise ModelError(cause, f"it needs about {size} x {size}: set data.size = {size}")
    raise ModelError(cause, "choose another model, or another data.size")


def _attempt(module: nn.Module, image: tuple[int, int, int], wanted: OutputShape) -> str | None:
    """What went wrong, in one line; None if nothing did."""
    # Large networks run on the meta device; for small ones, and for small images, real computation
    # is faster than working out shapes in Python. A network that holds plain tensors cannot run on
    # the meta device, so it computes too.
    parameters = sum(value.numel() for value in module.parameters())
    costly = parameters > _LARGE and parameters * image[1] * image[2] > _COSTLY
    if costly and _forward(module, image, wanted, "meta") is None:
        return None
    return _forward(module, image, wanted, "cpu")


def _forward(
    module: nn.Module, image: tuple[int, int, int], wanted: OutputShape, device: str
) -> str | None:
    was_training = {name: part.training for name, part in module.named_modules()}
    # Copies, so that the real running statistics do not change.
    if device == "meta":
        tensors = chain(module.named_parameters(), module.named_buffers())
        state = {name: value.detach().to("meta") for name, value in tensors}
    else:
        state = {name: value.clone() for name, value in module.named_buffers()}
    try:
        pixels = torch.zeros((2, *image), device=device)
        with torch.no_grad():
            for training in (True, False):
                module.train(training)
                answer: object = torch.func.functional_call(module, state, (pixels,))
                shape = tuple(getattr(answer, "shape", ()))
                if not isinstance(answer, Tensor) or not _fits(shape, (2, *wanted)):
                    return f"its answer has shape {shape}, not {(2, *wanted)}"
    except Exception as error:  # third-party code: any exception means that the size does not fit
        if ran_out(error):
            return _NO_ROOM
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        for name, part in module.named_modules():
            part.training = was_training[name]
    return None


def _fits(shape: tuple[int, ...], wanted: OutputShape) -> bool:
    return len(shape) == len(wanted) and all(
        side in (size, None) for size, side in zip(shape, wanted, strict=True)
    )
