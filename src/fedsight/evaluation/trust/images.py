"""Which images say how far answers can be trusted: none that was trained on or chose anything.

Images that the temperature was fitted to are not used for the sets, nor those for measuring what
came of it: a guarantee would be void otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedsight.core.draws import draws
from fedsight.data.base import Indices
from fedsight.data.partition import Partition
from fedsight.evaluation.evidence import some
from fedsight.evaluation.figures import Evaluator, Mix
from fedsight.evaluation.trust.units import of_one_site, one_of_each
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import View

MOST = 5000  # images of each of the three
LEARNT, OF_A_CLASS = 3000, 20  # training images whose features are compared; more for many classes
HELD_OUT, TESTED = "held-out inputs", "a half of the test inputs"
# By which test images are divided; never the program's, which is chosen by whoever asks for sums.
SEED = 0
QUARTERS = 4  # of a site's test images: one is fitted to, one is covered, two are tested


@dataclass(frozen=True)
class TrustImages:
    """Three disjoint parts: the images that temperatures are `fitted` to, those that the sets and
    the threshold of unlike images have to `cover`, and those that are `tested`; each a list of one
    model's images. `by` says which images the first two were; `grouped`: images to cover or tested
    stand for groups of several.
    """

    fitted: Sequence[SiteData]
    cover: Sequence[SiteData]
    tested: Sequence[SiteData]
    by: str
    grouped: bool = False

    def by_group(self, federation: Federation) -> TrustImages:
        """The same, but of each group that sets have to cover, or are tested on, one image."""
        both = [
            [standing(one, federation.partition) for one in part]
            for part in (self.cover, self.tested)
        ]
        before, after = (
            sum(len(one) for part in parts for one in part)
            for parts in ((self.cover, self.tested), both)
        )
        cover, tested = both
        return replace(self, cover=cover, tested=tested, grouped=after < before)


def standing(data: SiteData, partition: Partition) -> SiteData:
    """Of each group one image, drawn by the names of its site and of the images there, as they are
    divided into halves: by each site alone as in a simulation, and whatever the program."""

    def below(site: int) -> Callable[[int], int]:
        name = "" if site < 0 else partition.name(site)
        return draws(SEED, "trust", "one of each", name).below

    return one_of_each(data, below)


def trust_images(federation: Federation, apart: bool) -> TrustImages:
    """Images of the federation's sites; `apart`: each site has a model of its own.

    They are the validation images, in halves, unless rounds were compared on these.
    Otherwise half of the test images serve for this, and the other half is tested.
    """
    checked, seed = federation.validating, federation.program.split_seed
    if checked is not None and not federation.program.rounds.compared:
        fitted, cover = _halved(checked, _units_once(checked, checked.views), "fitted")
        tested, at = _units_once(federation, federation.views), checked
    else:
        return parts_of_test(federation, apart)
    return TrustImages(
        _together(at, _once(fitted, seed), apart), _together(at, _once(cover, seed), apart),
        _together(federation, _once(tested, seed), apart), HELD_OUT,
    )  # fmt: skip


def parts_of_test(federation: Federation, apart: bool) -> TrustImages:
    """Test images of the federation's sites in these three parts, as each site divides its own."""
    seed = federation.program.split_seed
    both = _halved(federation, federation.views, "tested")
    tested, rest = (_units_once(federation, half) for half in both)
    fitted, cover = _halved(federation, rest, "fitted")
    three = [_together(federation, _once(one, seed), apart) for one in (fitted, cover, tested)]
    return TrustImages(three[0], three[1], three[2], TESTED)


def divided(federation: Federation) -> tuple[SiteData, SiteData, SiteData]:
    """All test images of a deployed site in these three parts, however many there are.

    None is left over: figures are summed over all of them, and the sums over the parts, subtracted
    from these, would tell of what is left.
    """
    fitted, cover, tested = _in_parts(federation, federation.views[:1])
    return federation.tested(*fitted), federation.tested(*cover), federation.tested(*tested)


def pieces(data: SiteData, count: int) -> list[SiteData]:
    """The images in so many pieces of about equal size, each in its order."""
    return [some(data, places) for places in torch.arange(len(data)).tensor_split(count)]


def images_of_site(federation: Federation, site: int) -> TrustImages | None:
    """The test images of one site in the same three parts, for a model that was chosen by its
    held-out ones; None: it has none.

    Half of them are tested. Where all sites have one test part, an image counts as the site's with
    a probability by which they get the classes of the site's own images: those that are left are
    independent draws from its mix (von Neumann 1951), and all that holds for images drawn like them
    holds for the site's.
    """
    evaluator = Evaluator(federation)
    number = evaluator.view(site)
    if number is None:
        return None
    view, mix = federation.views[number], evaluator.mix_of(site)
    if mix is not None:
        view = replace(view, indices=_in_mix(federation, view.indices, mix, site))
    seed, parts = federation.program.split_seed, _in_parts(federation, [view])
    three = (_drawn(federation.tested(one), MOST, seed) for (one,) in parts)
    fit, covered, shown = ([data] if len(data) else [] for data in three)
    return TrustImages(fit, covered, shown, TESTED)


def _in_mix(federation: Federation, chosen: Indices, mix: Mix, site: int) -> Indices:
    """Those of the test images `chosen` [n] that count as images of a site with this `mix`."""
    labels = federation.dataset.test.labels[chosen]
    there = np.bincount(labels, minlength=len(mix))
    odds = np.divide(mix, there, out=np.zeros(len(mix)), where=there > 0)
    if not odds.any():
        return chosen[:0]
    name = federation.partition.name(site)
    drawn = draws(federation.program.split_seed, "trust", "mix", name).uniforms(len(chosen))
    kept: Indices = chosen[drawn < (odds / odds.max())[labels]]
    return kept


def _in_parts(federation: Federation, views: Sequence[View]) -> tuple[tuple[View, ...], ...]:
    """The images of each view in the three parts, in the order of `TrustImages`."""
    tested, rest = _halved(federation, views, "tested")
    fitted, cover = _halved(federation, rest, "fitted")
    return fitted, cover, tested


def _halved(
    federation: Federation, views: Iterable[View], purpose: str
) -> tuple[tuple[View, ...], tuple[View, ...]]:
    """Two halves of the images of each view; what belongs together stays together.

    Each group goes to the half that is smaller so far; which it is where they are equal is drawn,
    as the order is, from the site's name: so a site divides its images by itself as all sites'
    images are divided in a simulation. An image that several views have, and a group's at several
    sites, is in the same half in all. No program decides it: two that divided the same images
    otherwise would tell one of them by the difference of their sums. Where people are compared in
    pairs, which takes an even number of them from what is held out, the halves have nothing to do
    with those of other tasks.
    """
    part, unit = federation.dataset.test, unit_of(federation)
    pairs = federation.program.task.whole
    drawing = (purpose, "pairs") if pairs else (purpose,)
    half_of: dict[object, int] = {}
    found: tuple[list[View], list[View]] = ([], [])
    for view in views:
        name = "" if view.site is None else federation.partition.name(view.site)
        drawn, sizes = draws(SEED, "trust", *drawing, name), [0, 0]
        order = sorted(view.indices.tolist(), key=part.images.name)
        view = replace(view, indices=np.array(order, dtype=np.int64))
        names = [unit(place) for place in order]
        members = Counter(name for name in names if name not in half_of)
        fresh = [*members.items()]
        for number in drawn.permutation(len(fresh)).tolist():
            member, images = fresh[number]
            half = drawn.below(2) if sizes[0] == sizes[1] else int(sizes[1] < sizes[0])
            half_of[member] = half
            sizes[half] += images
        held = [member for member in members if half_of[member]]
        if pairs and purpose == "tested" and len(held) % 2:
            half_of[held[-1]] = 0
        of = np.array([half_of[name] for name in names], dtype=np.int64)
        for half in (0, 1):
            found[half].append(replace(view, indices=np.sort(view.indices[of == half])))
    return tuple(found[0]), tuple(found[1])


def unit_of(federation: Federation) -> Callable[[int], object]:
    """What the test image at a place belongs to; where images are compared with one another, to
    the person that it shows."""
    test = federation.dataset.test
    if not federation.program.task.whole:
        return test.unit
    return lambda place: int(test.labels[place])


def _units_once(federation: Federation, views: tuple[View, ...]) -> tuple[View, ...]:
    """The views, in which what a guarantee counts (`of_one_site`) is at one site; people are
    compared in pairs. Single images with one label come to one site later (`_once`)."""
    task = federation.program.task
    if task.covering is None and federation.dataset.test.groups is None:
        return views
    return of_one_site(views, unit_of(federation), SEED, 2 if task.whole else 1)


def _once(views: tuple[View, ...], seed: int) -> tuple[View, ...]:
    """The views, in which an image that several sites see is in one site's only; which one is
    drawn, as often each.

    The same image at ten sites is one image, however differently they see it: a guarantee from ten
    would promise too much, and so would a figure measured on them.
    """
    sizes = [len(view.indices) for view in views]
    every = np.concatenate([np.zeros(0, np.int64), *(view.indices for view in views)])
    order = np.argsort(every, kind="stable")
    images, first, many = np.unique(every[order], return_index=True, return_counts=True)
    if len(images) == len(every):
        return views
    turn = draws(seed, "trust", "once").permutation(len(images))
    mine = np.zeros(len(every), dtype=bool)
    mine[order[first + turn % many]] = True
    chosen = np.split(mine, np.cumsum(sizes)[:-1])
    return tuple(
        replace(view, indices=view.indices[own]) for view, own in zip(views, chosen, strict=True)
    )


def _together(federation: Federation, views: Sequence[View], apart: bool) -> list[SiteData]:
    """At most MOST images of the views, drawn evenly from all of them, so that the sites' shares
    stay as they are; those that one model answers are together."""
    found = [federation.tested(view) for view in views if len(view.indices)]
    if not apart and found:
        one = found[0]
        indices = torch.cat([data.indices for data in found])
        found = [replace(one, indices=indices, origins=torch.cat([data.origins for data in found]))]
    ends = np.cumsum([0, *(len(data) for data in found)])
    places = _places(int(ends[-1]), MOST, SEED)
    own = np.split(places, np.searchsorted(places, ends[1:-1]))
    return [
        some(data, torch.from_numpy(chosen - start))
        for data, chosen, start in zip(found, own, ends.tolist(), strict=False)
        if len(chosen)
    ]


def learnt_at(data: SiteData, classes: int, seed: int) -> SiteData:
    """Likewise of one site's training images."""
    return _drawn(data, min(MOST, max(LEARNT, OF_A_CLASS * classes)), seed)


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
    return learnt_at(
        whole.client(0), len(federation.dataset.classes), federation.program.split_seed
    )
