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
from fedsight.program.site_data import SiteData
from fedsight.program.views import View


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


def grouped(data: Sequence[SiteData]) -> bool:
    """Whether any of the images belong to a group of several."""
    places = {place for one in data for place in one.indices.tolist()}
    return bool(data) and len({data[0].part.unit(place) for place in places}) < len(places)
