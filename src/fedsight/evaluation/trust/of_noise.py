"""What follows from the sites' sums with noise: sets, a threshold for unlike images, a temperature.

What comes of them on other images is not measured: sites add noise to all of their test images'
histograms at once, which hides as little as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsight.engines.remote.sums import Noised
from fedsight.evaluation.trust import noised
from fedsight.evaluation.trust.conformal import BINS, threshold
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.noised_temperature import SURE, Confidence
from fedsight.evaluation.trust.remote import WITH_NOISE, why_nobody, why_not_remote
from fedsight.evaluation.trust.scaling import TemperatureScaling, plain
from fedsight.evaluation.trust.sets import CLASS, SITE, Sets
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.program.federation import Federation
from fedsight.program.views import listed

ALL_TESTED = "the test inputs"
UNFITTED = (
    "noise hides whether a temperature is needed: mean confidence and the share of right answers "
    "are {gap} points apart, and up to {sure} points may be noise and chance"
)
BY_CLASS = "without noise it is not known how many inputs each class has"
UNLISTED = "no site that has sent histograms is among those with figures of their own"
HIDDEN = "with the noise of {n} inputs' histograms the threshold is at the end of the scale"


def trusted_noised(
    federation: Federation, ask: Callable[[], Noised], groups: Mapping[str, int]
) -> Trusted:
    """Ask the sites for histograms with noise, and make of them what can be known. `groups`: how
    many groups the test images have of the sites that know what belongs together."""
    if reason := why_not_remote(federation):
        return Trusted.left_out(reason)
    found, without = ask()
    if not found:
        return Trusted.left_out(why_nobody(without), without)
    settings, sites = federation.program.trust, [*found.values()]
    sets = _sets(federation, found)
    heat, calibration = _told_confidence(sites)
    parts = {
        "calibration": calibration,
        "sets": _told_sets(federation, sets),
        "ood": _told_unlike(_envelope(noised.ENERGY, sites), settings.false_alarm),
    }
    more: dict[str, Any] = {"sums": WITH_NOISE, **({"without": dict(without)} if without else {})}
    more |= of_groups(federation, found, groups)
    summary = {part: {**told, **more} for part, told in parts.items()}
    facts = {
        "scaling": plain(noised.PLAIN), "by": ALL_TESTED, "apart": False, "head": None,
        "sets": {**sets.plain(), "guarantee": settings.guarantee},
        "ood": summary["ood"], "reliability": {},
        **({} if heat is None else {"calibrated": plain(heat)}),
    }  # fmt: skip
    kept = {} if settings.guarantee == CLASS else facts
    return Trusted(summary, kept, {})


def of_groups(
    federation: Federation, found: Mapping[str, NoisedSums], groups: Mapping[str, int]
) -> dict[str, Any]:
    """Whether numbers of images are of groups, and of which sites they are not."""
    views = (view for view in federation.views if view.site is not None)
    images = {federation.partition.name(view.site or 0): len(view.indices) for view in views}
    if not any(groups[name] < images[name] for name in found if name in groups):
        return {}
    ungrouped = sorted(name for name in found if name not in groups)
    return {"grouped": True, **({"ungrouped": ungrouped} if ungrouped else {})}


def _told_confidence(
    sites: Sequence[NoisedSums],
) -> tuple[TemperatureScaling | None, dict[str, Any]]:
    """A temperature, if one is known, and what the summary says of it; what comes of it is not
    measured."""
    deviation = noised.deviation_of(one.deviation[noised.CONFIDENCE] for one in sites)
    total = noised.added(sites, noised.CONFIDENCE)
    found = Confidence.of(total, deviation)
    told = {"images": total.count, "by": ALL_TESTED, "gap": found.gap, "noise": found.deviation}
    if not found.is_known:
        points = {"gap": f"{100 * found.gap:.1f}", "sure": f"{100 * SURE * found.deviation:.1f}"}
        return None, {**told, "reason": UNFITTED.format(**points)}
    heat = TemperatureScaling(found.temperature)
    return heat, {**told, "scaling": heat.kind, **heat.plain()}


def _envelope(name: str, sites: Sequence[NoisedSums]) -> Tensor:
    """The histogram [BINS] of all these sites together, by which no threshold is too low."""
    noise = noised.deviation_of(one.deviation[name] for one in sites)
    return noised.envelope(noised.added(sites, name), noise)


def _sets(federation: Federation, found: Mapping[str, NoisedSums]) -> Sets:
    """The histograms of all sites and of each. Of which class images are is not known: all are in
    the first row, and no guarantee is by class."""
    counts = torch.zeros(len(federation.dataset.classes), BINS, dtype=torch.int64)
    counts[0] = _envelope(noised.SCORES, [*found.values()])
    names = map(federation.partition.name, listed(federation.partition))
    each = {name: _envelope(noised.SCORES, [found[name]]) for name in names if name in found}
    return Sets(federation.program.trust.sets, counts, each)


def _told_sets(federation: Federation, sets: Sets) -> dict[str, Any]:
    """What the summary says of them; what comes of them is not measured."""
    settings, images = federation.program.trust, int(sets.classes.sum())
    known: dict[str, Any] = {
        "method": sets.method, "guarantee": settings.guarantee, "asked": settings.coverage,
        "images": images, "by": ALL_TESTED,
    }  # fmt: skip
    if settings.guarantee == CLASS:
        return {**known, "reason": BY_CLASS}
    if settings.guarantee == SITE:
        if not sets.sites:
            return {**known, "reason": UNLISTED}
        most = max((int(one.sum()) for one in sets.sites.values()), default=0)
        known["by_site"] = {name: {"images": int(one.sum())} for name, one in sets.sites.items()}
        hidden = all(_limit(one, settings.coverage) is None for one in sets.sites.values())
        return {**known, "reason": HIDDEN.format(n=most)} if hidden else known
    limit = _limit(sets.classes.sum(0), settings.coverage)
    return {**known, **_known_or_hidden(limit, images)}


def _told_unlike(counts: Tensor, asked: float) -> dict[str, Any]:
    images = int(counts.sum())
    told = {"score": "energy", "asked": asked, "images": images, "by": ALL_TESTED}
    return {**told, **_known_or_hidden(_limit(counts, 1 - asked), images)}


def _limit(counts: Tensor, coverage: float) -> float | None:
    """The threshold for this coverage; None if it would be the end of the scale."""
    limit = threshold(counts, coverage)
    return None if limit is None or limit >= 1 else limit


def _known_or_hidden(limit: float | None, images: int) -> dict[str, Any]:
    return {"reason": HIDDEN.format(n=images)} if limit is None else {"threshold": limit}
