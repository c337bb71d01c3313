"""What fails on a device, in words: memory that ran out, a device that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from fedsight.core.errors import EngineError

# How messages begin that PyTorch raises as mere RuntimeErrors.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "MPS backend out of memory")
_GONE = ("CUDA error", "CUDA driver", "cuDNN error", "NVML", "HIP error", "MPS backend")


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and any(text in str(error) for text in _NO_MEMORY)


def is_gone(error: BaseException) -> bool:
    """Whether `error` says that the device itself failed: it hangs, or was taken away."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return type(error) is RuntimeError and str(error).startswith(_GONE)


@contextlib.contextmanager
def named(device: torch.device, doing: str, cure: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn failures of `device` while `doing` into EngineError.

    `cure` is called when memory ran out and what was computed is gone from it; it says what would
    fit, and what to do.
    """
    short = False
    try:
        yield
    except RuntimeError as error:
        short = ran_out(error)
        if not short:
            if is_gone(error):
                raise lost(device, doing, error) from error
            raise
    if short:  # out here nothing holds the tensors of the failed step any more
        fits, what = cure()
        raise EngineError(f"the memory of {device} ran out while {doing}{fits}", what)


def lost(device: torch.device, doing: str, error: BaseException) -> EngineError:
    """A device that failed in the middle: the run can go on elsewhere."""
    said = str(error).strip().split("\n", 1)[0]
    return EngineError(
        f"the device {device} failed while {doing}: {said}",
        "continue from the last checkpoint with `fedsight resume`; with --device it goes on on "
        "another device, such as --device cpu",
    )


def fitting(most: int, attempt: Callable[[int], object], empty: Callable[[], None]) -> int:
    """The largest of `most` / 2, `most` / 4, ... for which `attempt` has memory; 0 if none has."""
    size = most // 2
    while size:
        empty()
        try:
            attempt(size)
        except RuntimeError as error:
            if not ran_out(error):
                return 0
        else:
            return size
        size //= 2
    return 0


def advice(batch: int, size: int) -> tuple[str, str]:
    """What to say where batches of `batch` images did not fit and such of `size` do; 0: none."""
    elsewhere = (
        "use fewer speed.workers if they share the device, or speed.precision = 'bfloat16', "
        "or go on on another device with `fedsight resume --device`"
    )
    if not size:
        told = f" with train.batch = {batch}, and not even one image fits"
        return told, f"choose a smaller model or data.size, {elsewhere}"
    told = f" with train.batch = {batch}; a batch of {size} fits"
    return told, f"start a run with train.batch = {size}, {elsewhere}"
