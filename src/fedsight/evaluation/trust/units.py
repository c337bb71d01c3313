"""What a guarantee counts: what belongs together, such as the images of a person or of a patient,
is at one site and counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsight.client.bound_model import CHUNK
from fedsight.core.draws import draws
from fedsight.data.base import Part
from fedsight.evaluation.trust.conformal import BINS, histogram
from fedsight.program.site_data import SiteData
from fedsight.program.views import View

ALMOST = 1e-9  # of a unit: sums of shares are not exact


def of_one_site(
    views: Sequence[View], unit: Callable[[int], object], seed: int, together: int = 1
) -> tuple[View, ...]:
    """The views, in which a unit that several of them show is left in one of them; `unit` gives
    what the image at a place belongs to.

    Which view is drawn, as often each, for `together` units at a time: 2 where units are put into
    pairs, so that both of a pair are at one site.
    """
    shown: dict[object, list[int]] = {}
    units = [[unit(place) for place in view.indices.tolist()] for view in views]
    for number, own in enumerate(units):
        for name in dict.fromkeys(own):
            shown.setdefault(name, []).append(number)
    alike: dict[tuple[int, ...], list[object]] = {}
    for name, numbers in shown.items():
        alike.setdefault(tuple(numbers), []).append(name)
    at: dict[object, int] = {}
    for sites, names in sorted(alike.items()):
        order = draws(seed, "trust", "units", *map(str, sites)).permutation(len(names)).tolist()
        for turn, chosen in enumerate(order):
            at[names[chosen]] = sites[turn // together % len(sites)]
    return tuple(
        replace(view, indices=view.indices[np.array([at[one] == number for one in own], bool)])
        for number, (view, own) in enumerate(zip(views, units, strict=True))
    )


def batches(data: SiteData, whole: bool) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
    """Positions [n] that are passed through a network together, and whether all of such a batch's
    are one unit: the images of a group. `whole`: all images are passed at once, and the task itself
    tells what belongs together."""
    if whole:
        yield (torch.arange(len(data)),), False
        return
    members: dict[object, list[int]] = {}
    for position, place in enumerate(data.indices.tolist()):
        members.setdefault(data.part.unit(place), []).append(position)
    alone = [own[0] for own in members.values() if len(own) == 1]
    if alone:
        yield torch.tensor(alone).split(CHUNK), False
    for own in members.values():
        if len(own) > 1:
            yield torch.tensor(own).split(CHUNK), True


def unit_numbers(part: Part, places: Tensor) -> Tensor:
    """What the images at these places [n] of a part belong to, as numbers [n]: of a group that of
    its first image, and of an image without a group its own."""
    if part.groups is None:
        return places.clone()
    first: dict[object, int] = {}
    for place, name in enumerate(part.groups):
        first.setdefault(place if name is None else name, place)
    return torch.tensor([first[part.unit(place)] for place in places.tolist()], dtype=torch.int64)


def shares(units: Tensor) -> Tensor:
    """What each image counts for [n], float64, where each unit [n] counts for as much: 1 in all."""
    _, at, sizes = units.unique(return_inverse=True, return_counts=True)
    each: Tensor = 1 / (sizes[at].double() * max(1, len(sizes)))
    return each


def unit_histogram(values: Tensor, units: Tensor) -> Tensor:
    """How many of the `units` [n] are at each score: int64 [BINS], from their images' scores [n].

    A unit loses, beyond a threshold, the share of its images whose scores are beyond. From each bin
    on the losses of all units are added, and the sum is rounded up. A threshold that is made of
    such a histogram as of one of images so keeps the mean loss of a new unit within what is asked
    (conformal risk control, Angelopoulos et al. 2022, equation 4 with B = 1). Where each image is
    a unit, it is their histogram.
    """
    unique, at, sizes = units.unique(return_inverse=True, return_counts=True)
    if len(unique) == len(units):
        return histogram(values)
    beyond = torch.zeros(BINS, dtype=torch.float64)
    for size in sizes.unique().tolist():
        counts = histogram(values[sizes[at] == size])
        beyond += (counts.flip(0).cumsum(0).flip(0)).double() / size
    whole = (beyond - ALMOST).ceil().clamp(0, len(unique)).to(torch.int64)
    return whole - torch.cat([whole[1:], torch.zeros(1, dtype=torch.int64)])


def grouped(data: Sequence[SiteData]) -> bool:
    """Whether any of the images belong to a group of several."""
    places = {place for one in data for place in one.indices.tolist()}
    return bool(data) and len({data[0].part.unit(place) for place in places}) < len(places)
