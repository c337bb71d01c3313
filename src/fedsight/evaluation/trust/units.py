"""What a guarantee counts: what belongs together, such as the images of a person or of a patient,
is at one site and counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsight.client.bound_model import CHUNK
from fedsight.core.draws import draws
from fedsight.data.base import Part
from fedsight.evaluation.evidence import some
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


def joined(data: Sequence[SiteData]) -> SiteData | None:
    """Several images of one part together; None if there are none."""
    there = [one for one in data if len(one)]
    if not there:
        return None
    indices = torch.cat([one.indices for one in there])
    origins = torch.cat([one.origins for one in there])
    return replace(there[0], indices=indices, origins=origins)


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


def one_of_each(data: SiteData, below: Callable[[int], Callable[[int], int]]) -> SiteData:
    """The images, but of each group only one, which stands for it; `below` gives, by the number of
    a site, what draws a whole number below another.

    A new group's image, drawn likewise, is exchangeable with these, whatever the images of a group
    have in common (Dunn, Wasserman and Ramdas 2022). And a group counts once in all
    that is summed over them, however many images it has.
    """
    if data.part.groups is None:
        return data
    kept, images = list[int](), data.part.images
    for site in data.origins.unique().tolist():
        own = torch.nonzero(data.origins == site).squeeze(1).tolist()
        places = dict(zip(own, data.indices[own].tolist(), strict=True))
        members: dict[object, list[int]] = {}
        for position in sorted(own, key=lambda at: images.name(places[at])):
            members.setdefault(data.part.unit(places[position]), []).append(position)
        drawn = below(site)
        kept += [those[drawn(len(those))] for those in members.values()]
    return some(data, torch.tensor(sorted(kept), dtype=torch.int64))


def grouped(data: Sequence[SiteData]) -> bool:
    """Whether any of the images belong to a group of several."""
    places = {place for one in data for place in one.indices.tolist()}
    return bool(data) and len({data[0].part.unit(place) for place in places}) < len(places)


def group_count(part: Part) -> int | None:
    """How many groups the images of a part are of; None: nobody knows what belongs together."""
    return None if part.groups is None else len({part.unit(place) for place in range(len(part))})


def fewest(
    fitted: SiteData, cover: SiteData, tested: SiteData, unit: Callable[[int], object]
) -> int:
    """The fewest groups that sums over these parts of a site's images are about, or the difference
    of such sums and of figures over all images. `unit` gives what the image at a place belongs to.

    Of the latter two one image of each group is summed, and figures are over all images: what they
    say more is of groups of several.
    """
    sizes = [
        [*Counter(map(unit, one.indices.tolist())).values()] for one in (fitted, cover, tested)
    ]
    several = sum(size > 1 for own in sizes[1:] for size in own)
    return min(*map(len, sizes), *([several] if several else []))
