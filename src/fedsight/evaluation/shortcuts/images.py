"""Which images a site's attribution is computed on: some of each class, that nobody trained on."""

from __future__ import annotations

import torch

from fedsight.core.draws import draws
from fedsight.evaluation.evidence import some
from fedsight.evaluation.shortcuts.observer import shown
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import listed

OF_A_CLASS = 16  # images of a site
TOGETHER, FEWEST = 1500, 16  # of all sites, and at least of each site that has as many


def own_images(federation: Federation) -> dict[int, SiteData]:
    """By site: its own test images, or, where all sites share the test part, its held-out ones; of
    each class at most OF_A_CLASS, in an order that is drawn. Empty if sites have neither.

    Of a site's images that belong together only one is taken, because a test that takes images as
    independent decides what follows. A group with images at several sites counts at each.
    """
    sites = listed(federation.partition)
    found = {site: own for site in sites if (own := images_of(federation, site)) is not None}
    return {site: data for site, data in found.items() if len(data)}


def images_of(federation: Federation, site: int) -> SiteData | None:
    """Those of one site; None if it has none."""
    at = federation if federation.dataset.test.sites is not None else federation.validating
    if at is None or at.dataset.test.sites is None:
        return None
    most = max(FEWEST, TOGETHER // len(listed(federation.partition)))
    for view in at.views:
        if view.site == site:
            return _drawn(at, at.tested(view), site, most)
    return None


def _drawn(federation: Federation, data: SiteData, site: int, most: int) -> SiteData:
    """At most so many images of a site, OF_A_CLASS of each class and one of each of its
    groups."""
    name = federation.partition.name(site)
    order = draws(federation.program.split_seed, "shortcuts", name).permutation(len(data))
    has = shown(data, len(federation.dataset.classes))
    room = torch.full((has.shape[1],), OF_A_CLASS)
    seen, taken = set[object](), list[int]()
    for place in order.tolist():
        unit = data.part.unit(int(data.indices[place]))
        if len(taken) == most or not bool(room.any()):
            break
        if unit in seen or not bool((has[place] & (room > 0)).any()):
            continue
        seen.add(unit)
        taken.append(place)
        room -= has[place].long()
        room.clamp_(min=0)
    return some(data, torch.tensor(taken, dtype=torch.int64))
