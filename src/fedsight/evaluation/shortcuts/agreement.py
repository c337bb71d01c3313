"""How far a site's own model looks at the same spots as the shared one, on the site's images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.evaluation.attempts import SHORTCUTS, Attempts
from fedsight.evaluation.explanations.randomisation import rank_correlation
from fedsight.evaluation.shortcuts.images import images_of
from fedsight.evaluation.shortcuts.observer import Observer
from fedsight.program.federation import Federation

BINS = 40  # of rank correlations from -1 to 1


def compared(
    federation: Federation, site: int, client: Client, shared: Tensor
) -> tuple[int, ...] | None:
    """A histogram [BINS] of the rank correlations of both models' maps of the images of `site`.

    The client has loaded the site's own model, and has it again afterwards; `shared` [size] is the
    other. None if the site has no images of its own, or it fails.
    """
    data, own = images_of(federation, site), client.vector.cpu().clone()
    if data is None or not len(data):
        return None

    def compare() -> tuple[int, ...]:
        observer = Observer(client)
        mine = observer.maps(data)
        _load(client, shared)
        return histogram(rank_correlation(mine, observer.maps(data)))

    try:
        return Attempts().of(SHORTCUTS, compare, None)
    finally:
        _load(client, own)


def histogram(correlations: Tensor) -> tuple[int, ...]:
    """The counts [BINS] of correlations [n]."""
    places = ((correlations + 1) / 2 * BINS).long().clamp(0, BINS - 1)
    return tuple(torch.bincount(places, minlength=BINS).tolist())


def mean(counts: Sequence[int]) -> float | None:
    """The mean correlation that a histogram tells, by the middles of its bins; None if it is
    empty."""
    total = sum(counts)
    if not total:
        return None
    return sum(count * (2 * at + 1 - BINS) for at, count in enumerate(counts)) / (BINS * total)


def checked(given: object) -> tuple[int, ...]:
    """A histogram as a run folder has it; ValueError for anything else."""
    if not isinstance(given, list) or len(given) != BINS:
        raise ValueError(f"{given!r:.80} is not a histogram of {BINS} bins")
    if any(type(count) is not int or count < 0 for count in given):
        raise ValueError("a histogram has counts that are not whole numbers")
    return tuple(given)


def _load(client: Client, vector: Tensor) -> None:
    layout = client.layout
    client.load(vector[layout.travelling], {"personal": vector[layout.personal]})
