"""How large answers have to be to cover the truth, from the sites' losses with noise.

What comes of it on other images is not measured: sites add noise to the losses of all of their test
images at once, which hides as little as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedsight.core.errors import DataError
from fedsight.engines.remote.sums import Noised
from fedsight.evaluation.trust.measure import TASK, Trusted
from fedsight.evaluation.trust.noised_cover import added, bounded
from fedsight.evaluation.trust.of_noise import ALL_TESTED, BY_CLASS, UNLISTED, of_groups
from fedsight.evaluation.trust.remote import WITH_NOISE, why_nobody, why_not_remote
from fedsight.evaluation.trust.risk import Losses, Risk
from fedsight.evaluation.trust.sets import CLASS, SITE
from fedsight.privacy.noised_sums import NoisedSums
from fedsight.program.federation import Federation
from fedsight.program.views import listed
from fedsight.tasks.covering.base import Covering

HIDDEN = "with the noise of {n} inputs' losses no answer is large enough"


def controlled_noised(
    federation: Federation,
    covering: Covering,
    ask: Callable[[], Noised],
    groups: Mapping[str, int],
) -> Trusted:
    """Ask the sites for losses with noise, and make of them what can be known. `groups`: how many
    groups the test images have of the sites that know what belongs together: of each one image is
    summed."""
    if reason := why_not_remote(federation):
        return Trusted.left_out(reason)
    found, without = ask()
    if not found:
        return Trusted.left_out(why_nobody(without), without)
    more = of_groups(federation, found, groups)
    risk = replace(_risk(federation, covering, found), grouped="grouped" in more)
    told = {**_told(federation, risk, found), **more, "sums": WITH_NOISE}
    if without:
        told["without"] = dict(without)
    summary = {**Trusted.left_out(TASK).summary, "sets": told}
    facts: dict[str, Any] = {"by": ALL_TESTED, "apart": False, "risk": risk.plain()}
    return Trusted(summary, {} if risk.guarantee == CLASS else facts, {})


def _risk(federation: Federation, covering: Covering, found: Mapping[str, NoisedSums]) -> Risk:
    (part,) = covering.parts
    groups = covering.groups(part, len(federation.dataset.classes))
    names = map(federation.partition.name, listed(federation.partition))
    own = covering.site_groups(part)
    sites = {name: bounded(found[name], own) for name in names if name in found}
    losses = Losses(bounded(added([*found.values()]), groups), sites)
    return Risk(covering, federation.program.trust.guarantee, {part: losses})


def _told(federation: Federation, risk: Risk, found: Mapping[str, NoisedSums]) -> dict[str, Any]:
    """What the summary says of it; what comes of it is not measured."""
    settings, (losses,) = federation.program.trust, risk.parts.values()
    units = int(losses.everything.units[0])
    known: dict[str, Any] = {
        "method": "crc", "covers": risk.covering.kind, "guarantee": risk.guarantee,
        "asked": settings.coverage, "images": units, "by": ALL_TESTED, "grouped": risk.grouped,
    }  # fmt: skip
    if risk.guarantee == CLASS:
        return {**known, "reason": BY_CLASS}
    if risk.guarantee == SITE:
        if not losses.sites:
            return {**known, "reason": UNLISTED}
        known["by_site"] = {
            name: {"images": int(one.units[0])} for name, one in losses.sites.items()
        }
        covered = any(_levels(risk, settings.coverage, name) for name in losses.sites)
        most = max(int(one.units[0]) for one in losses.sites.values())
        return known if covered else {**known, "reason": HIDDEN.format(n=most)}
    levels = _levels(risk, settings.coverage, None)
    if levels is None:
        return {**known, "reason": HIDDEN.format(n=units)}
    return {**known, **risk.covering.told(levels)}


def _levels(risk: Risk, coverage: float, site: str | None) -> Any:
    """The levels with this coverage; None: none has it."""
    try:
        return risk.levels(coverage, site)
    except DataError:
        return None
