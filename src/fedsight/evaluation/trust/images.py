"""Which images say how far answers can be trusted: none that was trained on or chose anything.

Images that the temperature was fitted to are not used for the sets, nor those for measuring what
came of it: a guarantee would be void otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedsight.core.draws import draws
from fedsight.data.base import Indices
from fedsight.evaluation.delivery.at_site import halves
from fedsight.evaluation.evidence import some
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import View

MOST = 5000  # images of each of the three
LEARNT, OF_A_CLASS = 3000, 20  # training images whose features are compared; more for many classes
HELD_OUT, TESTED = "held-out images", "a half of the test images"


@dataclass(frozen=True)
class TrustImages:
    """Three disjoint parts: the images that temperatures are `fitted` to, those that the sets and
    the threshold of unlike images have to `cover`, and those that are `tested`; each a list of one
    model's images. `by` says which images the first two were.
    """

    fitted: Sequence[SiteData]
    cover: Sequence[SiteData]
    tested: Sequence[SiteData]
    by: str


def trust_images(federation: Federation, apart: bool) -> TrustImages:
    """Images of the federation's sites; `apart`: each site has a model of its own.

    They are the validation images, each site's in halves, unless rounds were compared on these.
    Otherwise half of the test images serve for this, and the other half is tested.
    """
    checked = federation.validating
    if checked is not None and not federation.program.rounds.compared:
        fitted, cover = _halved(checked, checked.views, "fitted")
        tested, by = federation.views, HELD_OUT
        at = checked
    else:
        tested, rest = _halved(federation, federation.views, "tested")
        fitted, cover = _halved(federation, rest, "fitted")
        at, by = federation, TESTED
    return TrustImages(
        _together(at, _once(fitted), apart), _together(at, _once(cover), apart),
        _together(federation, tested, apart), by,
    )  # fmt: skip


def _halved(
    federation: Federation, views: Iterable[View], purpose: str
) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """Two halves of the images of each view; what belongs together stays together.

    Views of the same images have the same halves, so an image is never in both.
    """
    test, seed = federation.dataset.test, federation.program.split_seed
    first, second = [], []
    for view in views:
        one, other = halves(test, view.indices, seed, purpose)
        first.append(replace(view, indices=one))
        second.append(replace(view, indices=other))
    return tuple(first), tuple(second)


def _once(views: tuple[View, ...]) -> tuple[View, ...]:
    """The views, in which an image that several sites see is in one site's only.

    The same image at ten sites is one image, however differently they see it: a guarantee from ten
    would promise too much.
    """
    every = np.concatenate([view.indices for view in views]) if views else np.zeros(0, np.int64)
    if len(np.unique(every)) == len(every):
        return views
    count = len(views)
    return tuple(
        replace(view, indices=view.indices[view.indices % count == at])
        for at, view in enumerate(views)
    )


def _together(federation: Federation, views: Sequence[View], apart: bool) -> list[SiteData]:
    """At most MOST images of the views; those that one model answers are together."""
    found = [federation.tested(view) for view in views if len(view.indices)]
    if not apart and found:
        one = found[0]
        indices = torch.cat([data.indices for data in found])
        found = [replace(one, indices=indices, origins=torch.cat([data.origins for data in found]))]
    each = max(1, MOST // max(1, len(found)))
    seed = federation.program.split_seed
    return [_drawn(data, each, seed) for data in found]


def _drawn(data: SiteData, most: int, seed: int) -> SiteData:
    """At most so many of the images, drawn evenly."""
    if len(data) <= most:
        return data
    return some(data, torch.from_numpy(_places(len(data), most, seed)))


def _places(count: int, most: int, seed: int) -> Indices:
    order: Indices = draws(seed, "trust").permutation(count)[:most]
    return np.sort(order)


def learnt_from(federation: Federation) -> SiteData:
    """Training images of all sites, drawn evenly: LEARNT, or OF_A_CLASS for each class, but at most
    MOST."""
    whole = replace(federation, pooled=True)
    most = min(MOST, max(LEARNT, OF_A_CLASS * len(federation.dataset.classes)))
    return _drawn(whole.client(0), most, federation.program.split_seed)
