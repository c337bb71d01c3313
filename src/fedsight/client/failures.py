"""What fails in training, in words: memory that ran out, a device that is gone, a loss; and what is
left of statistics when single images fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedsight.core.devices import is_gone
from fedsight.core.errors import EngineError, SiteError
from fedsight.core.no_memory import ran_out


def training(site: str, round: int) -> str:
    """What a device may be at."""
    return f"training site '{site}' in round {round}"


def training_together(sites: str, round: int) -> str:
    """What a device may be at when sites are trained side by side."""
    return f"training sites {sites} side by side in round {round}"


def measuring(images: int) -> str:
    """What else it may be at."""
    return f"measuring {images:,} test images"


@contextlib.contextmanager
def named(device: torch.device, doing: str, short: Callable[[], EngineError]) -> Iterator[None]:
    """Turn failures of `device` while `doing` into EngineError.

    `short` is called when memory ran out and what was computed is gone from it.
    """
    failed = False
    try:
        yield
    except RuntimeError as error:
        failed = ran_out(error)
        if not failed:
            if is_gone(error):
                raise lost(device, doing, error) from error
            raise
    if failed:  # out here nothing holds the tensors of the failed step any more
        raise short()


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


def too_large(device: torch.device, doing: str, batch: int, size: int) -> EngineError:
    """Batches of `batch` images did not fit, and such of `size` do; 0: none."""
    if not size:
        return EngineError(
            f"the memory of {device} ran out while {doing} with train.batch = {batch}, and not "
            "even one image fits",
            "choose a smaller model or data.size, use fewer speed.workers if they share the "
            "device, or go on on another one with `fedsight resume --device`",
        )
    return EngineError(
        f"the memory of {device} ran out while {doing} with train.batch = {batch}; a batch of "
        f"{size} fits",
        f"start a run with train.batch = {size}, use fewer speed.workers if they share the "
        "device, set speed.precision = 'bfloat16', or go on on another device with `fedsight "
        "resume --device`",
    )


def too_many(device: torch.device, doing: str) -> EngineError:
    """So many sites at once did not fit."""
    return EngineError(
        f"the memory of {device} ran out while {doing}",
        "lower speed.together, or go on on another device with `fedsight resume --device`",
    )


def unmeasured(device: torch.device, doing: str, chunk: int) -> EngineError:
    """So many test images at once did not fit."""
    return EngineError(
        f"the memory of {device} ran out while {doing}, {chunk} at once",
        "use fewer speed.workers if they share the device, or go on on another one with "
        "`fedsight resume --device`",
    )


def diverged(site: str, round: int) -> SiteError:
    """The training loss of a site is not finite."""
    return SiteError(
        f"the training loss of site '{site}' is not finite in round {round}",
        "its training diverged or its data are broken: lower train.lr, set train.clip or "
        "look at its images; with rounds.quorum a run goes on without such replies",
    )


def add_image(found: dict[str, Tensor], one: Mapping[str, Tensor], row: Tensor | None) -> None:
    """Add the statistics of one image to those of a site; where images have a row each, put its own
    in `row` [1], and take what is the same for all images as it is."""
    for part, value in one.items():
        if row is None:
            found[part] += value
        elif len(found[part]) > 1:
            found[part][row] = value
        else:
            found[part].copy_(value)
