"""What follows from the sites' counts: where a model looks at a spot at one site and not at others,
and whether the spot by itself speaks for the class there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from statistics import NormalDist

from fedsight.core.intervals import apart, wilson
from fedsight.evaluation.shortcuts.counts import Looks, Pastes, looks_together

FALSE_ALARM = 0.01  # largest share of runs in which any site is named although sites look alike
ALONE = 0.5  # least share of other images that a spot gives its class, for it to decide by itself
DONORS = 3  # fewest images of a site that a spot is taken from, for it to decide there
ERROR = 0.05  # largest probability that any spot is said to decide at all sites and does not
SHORTCUT, DIFFERS, UNTESTED = "shortcut", "differs", "untested"

Pair = tuple[int, int]  # (site, class)
Pasted = Mapping[str, int]  # counts of one spot at one site: `donors`, `tried`, `made`, `raised`


@dataclass(frozen=True)
class Finding:
    """A spot that matters most for more images of a class at one site than at the other sites.

    `hottest` of `images` at the site, and `elsewhere`: the same two numbers of the others; `p` is
    the p value, adjusted for there being several tests.
    """

    site: int
    label: int
    spot: int
    hottest: int
    images: int
    elsewhere: tuple[int, int]
    p: float


def tail(hits: int, images: int, others: tuple[int, int]) -> float:
    """The probability that at least `hits` of `images` are hit if they are as likely to be as the
    others, of which (hits, images): Fisher's exact test, one-sided."""
    other_hits, other_images = others
    all_hits, every = hits + other_hits, images + other_images
    ways = sum(
        comb(images, n) * comb(other_images, all_hits - n)
        for n in range(hits, min(all_hits, images) + 1)
    )
    return ways / comb(every, all_hits)


def findings(
    looks: Mapping[int, Looks], without: Collection[Pair] = ()
) -> tuple[list[Finding], int]:
    """The most conspicuous spot of each class at each site that has one, the clearest first; and
    by how much p values were multiplied. `looks` is by site; pairs in `without` count as if they
    had no images.

    With all tests together, sites whose images are alike are named in at most FALSE_ALARM of runs:
    each p value is multiplied by the number of tests that could find anything at all, given how
    often each spot matters most at all sites together (Tarone 1990).
    """
    found, least = list[Finding](), list[float]()
    for label, counts in _counted(looks, without):
        total = [sum(column) for column in zip(*counts.values(), strict=True)]
        every = sum(total)
        for site, own in counts.items():
            images = sum(own)
            for spot, hits in enumerate(total[:-1]):
                if not hits:  # nowhere: its p value is 1
                    continue
                rest = (hits - own[spot], every - images)
                found.append(Finding(site, label, spot, own[spot], images, rest, 1.0))
                most = min(hits, images)
                least.append(tail(most, images, (hits - most, every - images)))
    tests = _tests(least)
    best: dict[Pair, Finding] = {}
    for one in found:
        p = tests * tail(one.hottest, one.images, one.elsewhere)
        if p <= FALSE_ALARM and ((pair := (one.site, one.label)) not in best or p < best[pair].p):
            best[pair] = replace(one, p=p)
    return sorted(best.values(), key=lambda one: (one.p, one.site, one.label)), tests


def _counted(
    looks: Mapping[int, Looks], without: Collection[Pair]
) -> Iterator[tuple[int, dict[int, list[int]]]]:
    """Each class that two sites or more have images of, with how often each spot, and none of them,
    matters most there."""
    labels = len(next(iter(looks.values())).images) if looks else 0
    for label in range(labels):
        counts = {
            site: look.hottest[label].tolist()
            for site, look in looks.items()
            if (site, label) not in without and int(look.images[label])
        }
        if len(counts) > 1:
            yield label, counts


def _tests(least: Sequence[float]) -> int:
    """The smallest number k, 1 or more, such that at most k tests can have a p value of at most
    FALSE_ALARM / k; `least` are the smallest p values that they can have."""
    ascending, k = sorted(least), 1
    while bisect_right(ascending, FALSE_ALARM / k) > k:
        k += 1
    return k


def pairs(looks: Mapping[int, Looks]) -> int:
    """How many (site, class) pairs have images."""
    return sum(int((look.images > 0).sum()) for look in looks.values())


def uncompared(looks: Mapping[int, Looks], tests: int) -> list[Pair]:
    """The (site, class) pairs with images that no outcome could name: too few sites and images have
    the class."""
    compared: dict[Pair, float] = {}
    for label, counts in _counted(looks, ()):
        every = sum(map(sum, counts.values()))
        for site, own in counts.items():
            images = sum(own)
            compared[site, label] = tests * tail(images, images, (0, every - images))
    return [
        (site, label)
        for site, look in looks.items()
        for label, images in enumerate(look.images.tolist())
        if images and compared.get((site, label), 1.0) > FALSE_ALARM
    ]


def speaks(own: Sequence[Pasted], others: Sequence[Pasted]) -> bool:
    """Whether a spot, pasted on other images, raises the odds of its class more often at a site
    than the same spot of the other sites' images does there: by the 95 % interval of the
    difference, with the images that the spot is taken from as the units."""
    if not _tried(own) or not _tried(others):
        return False
    first, second = ((share, wilson(share, units)) for share, units in map(_raised, (own, others)))
    return apart(first, second)[0] > 0


def _tried(pasted: Sequence[Pasted]) -> bool:
    return any(one["tried"] for one in pasted)


def _raised(pasted: Sequence[Pasted]) -> tuple[float, int]:
    """How often the odds rise, on average over the images that the spot is taken from, and how many
    these are. Pastes of one such image are not independent: a share of so many units has at least
    the variance of a mean of their shares, however much alike its pastes are."""
    some = [one for one in pasted if one["tried"]]
    donors = sum(one["donors"] for one in some)
    return sum(one["donors"] * one["raised"] / one["tried"] for one in some) / donors, donors


def deciding(pasted: Iterable[Pasted], asked: int) -> int:
    """At how many sites a spot by itself decides for its class: pasted on images of other classes,
    it gives more than ALONE of them the class beyond chance. 0 if that is so at one site alone, or
    if it does not give so many the class at some other. `pasted`: its counts, site by site;
    `asked`: how many spots were asked about.

    The units are the images that it is pasted on, given those that it is taken from; sites where
    these are fewer than DONORS cannot show it, as that would be about one image. The level is
    divided by the spots asked about, and for two of m sites by m - 1 (Benjamini and Heller 2008,
    partial conjunctions by Bonferroni).
    """
    some = [one for one in pasted if one["donors"] >= DONORS]
    level = ERROR / (asked * max(1, len(some) - 1)) if asked else ERROR
    z = NormalDist().inv_cdf(1 - level / 2)
    clear = [wilson(one["made"] / one["tried"], one["tried"], z)[0] > ALONE for one in some]
    everywhere = all(one["made"] > ALONE * one["tried"] for one in some)
    return sum(clear) if everywhere and sum(clear) > 1 else 0


def verdicts(
    looks: Mapping[int, Looks], found: list[Finding], pastes: Mapping[int, Pastes]
) -> dict[int, str]:
    """SHORTCUT, UNTESTED or DIFFERS, by the place of a finding; `pastes` is by site, of the
    findings in their order. Left out are those that only show that what another site looks at, a
    shortcut or something untested, is missing."""
    told: dict[int, str] = {}
    counts = {at: _apart(at, one, pastes) for at, one in enumerate(found)}
    for at, (own, others) in counts.items():
        if speaks(own, others):
            told[at] = SHORTCUT
    untested = [at for at, (own, others) in counts.items() if not _tried(own) or not _tried(others)]
    for verdict, those in ((UNTESTED, untested), (DIFFERS, [*counts])):
        named = {(found[at].site, found[at].label) for at in told}
        left = {(one.site, one.label) for one in findings(looks, named)[0]}
        for at in those:
            if at not in told and (found[at].site, found[at].label) in left:
                told[at] = verdict
    return told


def _apart(
    at: int, one: Finding, pastes: Mapping[int, Pastes]
) -> tuple[list[Pasted], list[Pasted]]:
    """The counts of one finding: at its site, and at each of the others."""
    own: list[Pasted] = [pastes[one.site].at(at)]
    return own, [pasted.at(at) for site, pasted in pastes.items() if site != one.site]


def hottest(looks: Mapping[int, Looks]) -> list[tuple[int, int, int, int]]:
    """(class, spot, images for which it matters most, images) of each class's spot at all sites
    together; those with the largest shares first."""
    if not looks:
        return []
    one = next(iter(looks.values()))
    total = looks_together(looks.values(), Looks.none(*one.mass.shape))
    rows = [
        (label, int(row[:-1].argmax()), int(row[:-1].max()), int(row.sum()))
        for label, row in enumerate(total.hottest)
        if int(row[:-1].sum())
    ]
    return sorted(rows, key=lambda row: (-row[2] / row[3], row[0]))
