"""How large answers have to be to cover the truth, where the images stay at the sites.

All is made of one round of whole-number sums (`cover_sums.py`), as a simulation makes it of its
images. A site's sums are checked and added as they come; under secure aggregation only the sum of
all sites comes, which is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedsight.evaluation.trust.cover_counts import NOBODY, Counts, Tallies
from fedsight.evaluation.trust.cover_sums import CoverSums, form
from fedsight.evaluation.trust.covering import Covers
from fedsight.evaluation.trust.images import TESTED
from fedsight.evaluation.trust.measure import Trusted
from fedsight.evaluation.trust.remote import (
    EXACT,
    MASKED,
    NO_SITE,
    Added,
    Ask,
    told_of_sums,
    why_nobody,
    why_not_remote,
)
from fedsight.evaluation.trust.sets import CLASS, SITE
from fedsight.program.federation import Federation
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import Tally

HEAT = 1.0  # nothing is fitted, and no probability is scaled


def controlled_remote(
    federation: Federation, covering: Covering, ask: Ask, groups: Mapping[str, int]
) -> Trusted:
    """Ask the sites, and make of their sums what can be known. `groups`: how many groups the test
    images have of the sites that know what belongs together."""
    if reason := why_not_remote(federation):
        return Trusted.left_out(reason)
    way = MASKED if federation.program.secure.masks else EXACT
    return controlled_by_sums(federation, covering, ask, (TESTED, way), groups)


def controlled_by_sums(
    federation: Federation,
    covering: Covering,
    ask: Ask,
    how: tuple[str, str],
    groups: Mapping[str, int] | None = None,
) -> Trusted:
    """What can be known of the sums of all sites; `how`: which inputs they are over, and how they
    travelled (empty: none did). `groups`: see `controlled_remote`; None: what belongs together is
    known of all."""
    by, way = how
    held: dict[str, dict[int, Tally]] = {part: {} for part in covering.parts}
    tested: dict[str, dict[int, Tally]] = {part: {} for part in covering.parts}
    number_of = _numbers(federation)
    whole = _whole_groups(federation, covering)

    def keep(name: str, sums: CoverSums) -> None:
        for part in covering.parts:
            own, site = covering.site_groups(part), number_of(name)
            held[part][site] = sums.held[part].first(own)
            tested[part][site] = sums.tested[part] if whole else sums.tested[part].first(own)

    read = partial(CoverSums.read, covering=covering, classes=len(federation.dataset.classes))
    kind = form(covering, len(federation.dataset.classes)), read
    sums = Added(federation, kind, keep, groups)
    without = sums.asked(ask, HEAT)
    if sums.total is None:
        return Trusted.left_out(why_nobody(without), without)
    if federation.dataset.test.sites is None:  # all sites test on the same inputs
        for part in covering.parts:
            held[part][NOBODY], tested[part][NOBODY] = (
                sums.total.held[part],
                sums.total.tested[part],
            )
    counts = Counts(
        {part: Tallies(sums.total.held[part], held[part]) for part in covering.parts},
        {part: Tallies(sums.total.tested[part], tested[part]) for part in covering.parts},
        by,
        sums.total.grouped and not federation.program.task.whole,
    )
    found = Covers(federation, covering, counts).all()
    ungrouped = sums.ungrouped if counts.grouped else []
    missing = sums.images - int(sums.total.images[0])
    return _told(found, way, told_of_sums(way, without, ungrouped, missing))


def _told(found: Trusted, way: str, more: Mapping[str, Any]) -> Trusted:
    """The same, with what is said of the sums; masked ones say nothing of a single site."""
    summary = {part: {**told, **more} for part, told in found.summary.items()}
    sets = summary["sets"]
    if way == MASKED and sets.get("guarantee") == SITE and "coverage" not in sets:
        sets = {key: told for key, told in sets.items() if key != "cure"}
        return Trusted({**summary, "sets": {**sets, "reason": NO_SITE}}, {}, {})
    return Trusted(summary, found.facts, found.tensors)


def _whole_groups(federation: Federation, covering: Covering) -> bool:
    """Whether it is shown of a site what its units of each class lose."""
    return federation.program.trust.guarantee == CLASS or covering.mixes


def _numbers(federation: Federation) -> Callable[[str], int]:
    """The number of a site with test images of its own, by its name."""
    name = federation.partition.name
    known = {name(view.site): view.site for view in federation.views if view.site is not None}
    return known.__getitem__
