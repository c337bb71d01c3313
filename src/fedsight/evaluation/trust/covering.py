"""How large answers have to be to cover the truth, for tasks that say what theirs may miss.

All of it follows from sums of whole numbers over held-out units, those of each site apart: who adds
them up makes no difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.conformal import smallest
from fedsight.evaluation.trust.cover_counts import NOBODY, Counts, counted
from fedsight.evaluation.trust.measure import FEW, TASK, Trusted, why_not
from fedsight.evaluation.trust.risk import ALL, Losses, Risk, shown
from fedsight.evaluation.trust.sets import CLASS, SITE
from fedsight.program.federation import Federation
from fedsight.program.views import listed
from fedsight.tasks.covering.base import Covering
from fedsight.tasks.covering.levels import UNIT, Tally

NOT_BY_CLASS = "trust.guarantee = 'class' is not for this task"
UNKNOWN = (FEW, NOT_BY_CLASS)  # reasons for which nothing is kept
UNSEEN = "sites have no test inputs of their own to show it on"


def controlled(final: Final, covering: Covering, local: bool) -> Trusted:
    """How large answers have to be, for the model that a run ended with; `local`: the images are on
    this machine."""
    reason = why_not(final.federation, local)
    if reason != TASK:
        assert reason is not None  # such a task has no sets of classes
        return Trusted.left_out(reason)
    return Covers(final.federation, covering, counted(final, covering)).all()


class Covers:
    """What a model loses of held-out and of test images, and what follows from it."""

    def __init__(self, federation: Federation, covering: Covering, counts: Counts) -> None:
        self._federation, self._covering, self._counts = federation, covering, counts
        self._settings, self._evaluator = federation.program.trust, Evaluator(federation)

    def all(self) -> Trusted:
        """What the summary says, and what is kept so that answers can be made large enough."""
        told, facts, counts = self.told(), dict[str, Any](), self._counts
        if told.get("reason") not in UNKNOWN:
            facts = {"by": counts.by, "apart": counts.apart, "risk": self.risk.plain()}
        return Trusted({**Trusted.left_out(TASK).summary, "sets": told}, facts, {})

    @property
    def risk(self) -> Risk:
        """What was counted of the held-out images, of all and of each listed site."""
        names, parts = self._federation.partition.name, {}
        for part, held in self._counts.held.items():
            own = self._covering.site_groups(part)
            sites = {
                names(site): held.sites[site].first(own)
                for site in listed(self._federation.partition)
                if site in held.sites and int(held.sites[site].units[0])
            }
            parts[part] = Losses(held.whole, sites)
        return Risk(self._covering, self._settings.guarantee, parts, self._counts.grouped)

    def told(self) -> dict[str, Any]:
        """What the summary says, as the tested images show it."""
        asked, guarantee, risk = self._settings.coverage, self._settings.guarantee, self.risk
        first, *_ = self._covering.parts
        held = {part: int(one.everything.units[0]) for part, one in risk.parts.items()}
        tested = {part: one.whole for part, one in self._counts.tested.items()}
        known: dict[str, Any] = {
            "method": "crc", "covers": self._covering.kind, "guarantee": guarantee,
            "asked": asked, "images": held[first], "tested": int(tested[first].units[0]),
            "by": self._counts.by, "smallest": smallest(asked), "grouped": self._counts.grouped,
        }  # fmt: skip
        if not (held[first] and known["tested"]):
            return {**known, "reason": FEW}
        if guarantee not in self._covering.guarantees:
            return {**known, "reason": NOT_BY_CLASS}
        sites = self._by_site(risk, asked)
        if not sites and self._unseen(risk):
            known["reason_by_site"] = UNSEEN
        if guarantee == SITE:
            found = self._mean_of(sites, risk, asked)
            return {**known, **found, **self._further(tested, risk), "by_site": sites}
        try:
            levels = risk.levels(asked)
        except DataError as error:
            return {**known, "reason": error.cause, "cure": error.cure}
        further = self._further(tested, risk)
        return {**known, **self._shown(tested, levels), **further, "by_site": sites}

    def _further(self, tested: Mapping[str, Tally], risk: Risk) -> dict[str, Any]:
        """What the task also asks for, or why it has none."""
        found: dict[str, Any] = {}
        for name, coverage in self._covering.also(self._federation.program.task).items():
            if risk.guarantee == SITE:
                found[name] = self._mean_of(self._by_site(risk, coverage), risk, coverage)
                continue
            try:
                found[name] = self._shown(tested, risk.levels(coverage))
            except DataError as error:
                found[name] = {"reason": error.cause, "cure": error.cure}
        return {"at": found} if found else {}

    def _shown(self, tested: Mapping[str, Tally], levels: Mapping[str, Tensor]) -> dict[str, Any]:
        names = self._federation.dataset.classes
        return told_at(self._covering, self._settings.guarantee, tested, levels, names)

    def _by_site(self, risk: Risk, asked: float) -> dict[str, Any]:
        """How each site does by the guarantee, and by its own held-out units: with a coverage of
        this, on test images of its own or, if losses follow from classes, in its mix of these."""
        names, found = self._federation.partition.name, dict[str, Any]()
        first, *_ = self._covering.parts
        seen = self._counts.tested[first].sites
        for site in self._evaluator.sites:
            name = names(site)
            own = risk.parts[first].sites.get(name)
            mine = seen.get(site, seen.get(NOBODY))
            if mine is None or not int(mine.units[0]) or not self._seen(site):
                continue
            if own is None and site not in seen:
                continue  # nothing is known of this site that is not known of all
            told: dict[str, Any] = {"images": 0 if own is None else int(own.units[0])}
            for guarantee, key in ((risk.guarantee, ""), (SITE, "own_")):
                shows: dict[str, Any] = {"coverage": None, "size": None}
                with contextlib.suppress(DataError):  # too few
                    levels = risk.levels(asked, name, guarantee)[first]
                    shows = self._shown_at(site, mine, levels, guarantee)
                told |= {f"{key}coverage": shows["coverage"], f"{key}size": shows["size"]}
            found[name] = told
        return found

    def _seen(self, site: int) -> bool:
        """Whether test images show how a site does: they are its own, or classes have losses by
        which its mix has them."""
        if self._federation.dataset.test.sites is not None or self._covering.classless:
            return site in self._counts.tested[self._covering.parts[0]].sites
        return self._covering.mixes and self._evaluator.mix_of(site) is not None

    def _unseen(self, risk: Risk) -> bool:
        """Whether sites with held-out images of their own are not seen in test images."""
        first, *_ = self._covering.parts
        names = self._federation.partition.name
        held = [one for one in self._evaluator.sites if names(one) in risk.parts[first].sites]
        return bool(held) and not any(self._seen(site) for site in held)

    def _shown_at(self, site: int, tally: Tally, levels: Tensor, guarantee: str) -> dict[str, Any]:
        """What tested units show of a site at the `levels` [classes] of its answers."""
        mix = self._evaluator.mix_of(site) if self._covering.mixes else None
        if mix is None and guarantee != CLASS:
            size = float(tally.sizes[int(levels[0])]) / UNIT / tally.sized if tally.sized else None
            return {"coverage": shown(tally, 0, int(levels[0])), "size": size}
        if mix is None:
            return by_class(tally, levels, self._federation.dataset.classes)
        each = [shown(tally, 1 + label, one) for label, one in enumerate(levels.tolist())]
        known = [
            (part, one) for part, one in zip(mix.tolist(), each, strict=True) if one is not None
        ]
        whole = sum(part for part, _ in known)
        coverage = sum(part * one for part, one in known) / whole if whole else None
        return {"coverage": coverage, "size": None}  # sizes are not counted class by class

    def _mean_of(self, sites: Mapping[str, Any], risk: Risk, asked: float) -> dict[str, Any]:
        """What sites show on average, each by its own held-out units, with a coverage of this."""
        each = [one for one in sites.values() if one["coverage"] is not None]
        if not each:
            try:
                first, *_ = self._covering.parts
                own = risk.parts[first].sites
                largest = max(own, key=lambda name: int(own[name].units[0]), default=None)
                risk.levels(asked, largest)
            except DataError as error:
                return {"reason": error.cause, "cure": error.cure}
            return {"reason": UNSEEN}
        return {
            "coverage": float(np.mean([one["coverage"] for one in each])),
            "size": _mean([one["size"] for one in each]),
        }


def told_at(
    covering: Covering, guarantee: str, tested: Mapping[str, Tally], levels: Mapping[str, Tensor],
    names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The coverage that tested units show at these levels, and how large answers are; of a model
    whose classes have these `names`."""
    first, *further = covering.parts
    tally, at = tested[first], levels[first]
    if guarantee == CLASS:
        told = by_class(tally, at, names, covering.least_class)
    else:
        size = float(tally.sizes[int(at[0])]) / UNIT / tally.sized if tally.sized else None
        told = {"coverage": shown(tally, 0, int(at[0])), "size": size}
    for part in further:
        group = covering.group(part, levels)
        told[part] = shown(tested[part], group, int(levels[part][0]))
    return told | covering.told(levels)


def by_class(tally: Tally, levels: Tensor, names: Sequence[str], least: int = 0) -> dict[str, Any]:
    """What tested units show of each class at its own of the `levels` [classes]. The mean is of
    those that a level was chosen for; `always` are the others from class `least` on, which no
    answer leaves out."""
    own = levels.tolist()
    each = [shown(tally, 1 + label, one) for label, one in enumerate(own)]
    return {
        "coverage": _mean([one for one, at in zip(each, own, strict=True) if at != ALL]),
        "size": None,
        "by_class": dict(zip(names, each, strict=True)),
        "always": [name for name, at in [*zip(names, own, strict=True)][least:] if at == ALL],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return float(np.mean(known)) if known else None
