"""How far the common model's answers can be trusted, where the images stay at the sites.

All is made of two rounds of whole-number sums (`sums.py`), as a simulation makes it of the answers.
A site's sums are checked and added as they come, and what is kept of a site is what is told of it.
Under secure aggregation only the sum of all sites comes, which is the same bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.core.sum_form import SumForm
from fedsight.engines.remote.replies import Take
from fedsight.engines.remote.sums import SumQuestion
from fedsight.evaluation.trust import cover_sums
from fedsight.evaluation.trust.conformal import BINS, covered, smallest, threshold
from fedsight.evaluation.trust.cover_sums import CoverSums
from fedsight.evaluation.trust.fit import Fit, FitFile
from fedsight.evaluation.trust.images import TESTED
from fedsight.evaluation.trust.measure import (
    ENDED,
    FEW,
    NOISED,
    OFF,
    TASK,
    UNLABELLED,
    Trusted,
    calibration_told,
)
from fedsight.evaluation.trust.reliability import FEWEST, Reliability
from fedsight.evaluation.trust.scaling import TemperatureScaling, few, plain
from fedsight.evaluation.trust.sets import CLASS, SITE, Sets
from fedsight.evaluation.trust.sums import (
    MOST_CLASSES,
    CountSums,
    FitSums,
    K,
    form,
    read,
)
from fedsight.program.federation import Federation
from fedsight.program.program import Program
from fedsight.program.views import listed

OWN = "sites have parameters of their own, and these sums are of one model"
MANY = f"these sums are made for at most {MOST_CLASSES} classes"
ONE_HEAT = "to sums of sites one temperature is fitted, whatever trust.scaling says"
NOBODY = "no site has released these sums"
MADE_UP = "it sent sums that no model can have on its test images"
ALL_MADE_UP = "the masked sum of the sites is one that no model can have on their test images"
NO_SITE = "the sums of the sites were masked, so nothing is known of a single site"
EXACT, MASKED, WITH_NOISE = "exact", "masked", "noised"  # how sums travelled

# Asks all sites for the sums of a question, and has those of one view after the other taken, or the
# masked sum of all; returns why sites have sent none, by their names.
Ask = Callable[[SumQuestion, Take], Mapping[str, str]]


def why_not_remote(federation: Federation) -> str | None:
    """Why no site is asked; None if they are."""
    program = federation.program
    own = program.differs(federation.network) or program.data.harmonise == "site"
    return refused(program, federation.hidden is not None, own, len(federation.dataset.classes))


def refused(program: Program, unlabelled: bool, own: bool, classes: int) -> str | None:
    """Why the sums of a program are neither asked for nor released; None if they are.

    `unlabelled`: whether images lack labels of some classes; `own`: whether parameters are a
    site's own.
    """
    covering = program.task.covering
    unnoised = "" if covering is None else covering.unnoised
    reasons = {
        OFF: not program.trust.measured,
        TASK: covering is None and not (program.task.scored and program.task.classed),
        NOISED: program.privacy.protects and program.secure.masks,
        unnoised: bool(unnoised) and program.privacy.protects,
        UNLABELLED: unlabelled,
        OWN: own,
        MANY: classes > MOST_CLASSES and (covering is None or covering.by_class(classes)),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def fits(program: Program) -> bool:
    """Whether a temperature is fitted first, to losses: not where a task's answers are made large
    enough, nor with noise, where one question has all."""
    return program.task.covering is None and not program.privacy.protects


def form_of(program: Program, classes: int, heat: float | None = 1.0) -> SumForm:
    """The form of the exact or masked sums of a program for a model with so many classes; `heat`:
    the temperature of scores, None: of losses."""
    if program.task.covering is not None:
        return cover_sums.form(program.task.covering, classes)
    return form(FitSums if heat is None else CountSums, classes)


def trusted_remote(
    federation: Federation, ask: Ask, file: FitFile, groups: Mapping[str, int]
) -> Trusted:
    """Ask the sites, and make of their sums what can be known. What `file` has is not asked for
    again: the temperature of a run that was interrupted. `groups`: how many groups the test images
    have of the sites that know what belongs together."""
    if reason := why_not_remote(federation):
        return Trusted.left_out(reason)
    fit, unknown = file.read(), dict[str, str]()
    if fit is None:
        fit, unknown = fitted_by(federation, ask)
    if fit is None:
        return Trusted.left_out(why_nobody(unknown), unknown)
    file.write(fit)
    way = MASKED if federation.program.secure.masks else EXACT
    return summed(federation, ask, fit, (TESTED, way), groups)


def summed(
    federation: Federation,
    ask: Ask,
    fit: Fit,
    how: tuple[str, str],
    groups: Mapping[str, int] | None = None,
) -> Trusted:
    """What can be known of scores at the temperature of `fit`; `how`: which inputs it rests on, and
    how sums of them travelled (empty: none did). `groups`: see `trusted_remote`; None: what belongs
    together is known of all."""
    least = TemperatureScaling.fewest(0)
    reason = "" if fit.images >= least else few(fit.images, least)
    if federation.program.trust.scaling != TemperatureScaling.kind:
        reason = ONE_HEAT
    of_sites = dict[str, _OfSite]()

    def keep(name: str, sums: CountSums) -> None:
        of_sites[name] = _OfSite.of(sums, federation.program.trust.guarantee)

    counts = Added(federation, _kind(federation, CountSums), keep, groups)
    more = counts.asked(ask, fit.temperature)
    if counts.total is None:
        return Trusted.left_out(why_nobody(more), more)
    if not (int(counts.total.cover.sum()) and int(counts.total.tested.sum())):
        return Trusted.left_out(FEW)
    by_site = {
        name: of_sites[name]
        for view in federation.views
        if view.site is not None and (name := federation.partition.name(view.site)) in of_sites
    }
    told = fit.temperature, fit.images, reason
    made = _Summed(federation, counts.total, by_site, told, *how, counts.ungrouped)
    same = fit.without.keys() == more.keys()  # the sums are over the same sites
    return made.all({**fit.without, **more}, counts.images - fit.images if same else None)


def fitted_by(federation: Federation, ask: Ask) -> tuple[Fit | None, dict[str, str]]:
    """The temperature with the least loss at all sites, or 1 where there are too few images; None
    if no site has answered. And why sites have not."""
    fits = Added(federation, _kind(federation, FitSums))
    without = fits.asked(ask, None)
    if fits.total is None:
        return None, without
    images = int(fits.total.images[0])
    enough = images >= TemperatureScaling.fewest(0)
    return Fit(fits.total.temperature if enough else 1.0, images, without), without


def _kind(federation: Federation, kind: type[K]) -> Kind[K]:
    """The form of sums of a kind, and what reads them."""
    classes = len(federation.dataset.classes)
    return form(kind, classes), partial(read, kind, classes=classes)


class Summed(Protocol):
    """Sums over images, as they are read from whole numbers."""

    def __add__(self, other: Self) -> Self:
        """Those of both together."""
        ...

    def is_possible(self, most: int) -> bool:
        """Whether a model can have these on at most so many images."""
        ...


S = TypeVar("S", bound=Summed)
Kind = tuple[SumForm, Callable[[Tensor], S]]


class Added(Generic[S]):
    """The sums of one kind of all sites: `total`, None without any."""

    def __init__(
        self,
        federation: Federation,
        kind: Kind[S],
        keep: Callable[[str, S], None] | None = None,
        groups: Mapping[str, int] | None = None,
    ) -> None:
        """`kind`: the form of the numbers, and what makes sums of them; `keep` sees those of each
        site with figures of its own, and the site's name; `groups`: see `trusted_remote`."""
        self.total: S | None = None
        self._groups = groups
        self._names: list[str] = []  # of the sites that are in it
        self._federation = federation
        self._form, self._read = kind
        self._keep: Callable[[str, S], None] | None = keep
        self._listed = listed(federation.partition)
        self._without: dict[str, str] = {}
        self.images = 0  # that the sites have declared

    def asked(self, ask: Ask, heat: float | None) -> dict[str, str]:
        """Add up what sites answer; returns why others are not in it, by name."""
        why = {**ask(SumQuestion(heat, self._form), self._take), **self._without}
        if self._federation.program.secure.masks:
            every = map(self._federation.partition.name, range(len(self._federation.partition)))
            self._names = [name for name in every if name not in why]
        return why

    @property
    def ungrouped(self) -> list[str]:
        """The sites in it whose images count one by one, as nobody there knows what belongs
        together."""
        groups = self._groups
        return [] if groups is None else sorted(one for one in self._names if one not in groups)

    def _is_possible(self, sums: S, images: int, name: str | None) -> bool:
        """Whether a model can have these on so many images, of which the site `name` has declared
        how many groups they are."""
        if not sums.is_possible(images):
            return False
        if self._groups is None or name is None or not isinstance(sums, CountSums | CoverSums):
            return True
        return sums.groups <= self._groups[name] if name in self._groups else not sums.grouped

    def _take(self, number: int | None, images: int, numbers: Tensor) -> None:
        sums, site = self._read(numbers), None
        if number is not None:
            site = self._federation.views[number].site
        name = None if site is None else self._federation.partition.name(site)
        if not self._is_possible(sums, images, name):
            if name is not None:
                self._without[name] = MADE_UP
            elif number is None:
                names = map(self._federation.partition.name, range(len(self._federation.partition)))
                self._without |= dict.fromkeys(names, ALL_MADE_UP)
            return
        self.total = sums if self.total is None else self.total + sums
        self.images += images
        self._names += [] if name is None else [name]
        if self._keep is not None and name is not None and site in self._listed:
            self._keep(name, sums)


def told_of_sums(
    way: str, without: Mapping[str, str], ungrouped: Sequence[str], missing: int
) -> dict[str, Any]:
    """What each part of the summary says of the sums that it is made of: how they travelled (empty:
    none did), why sites are not in them, which sites do not know what belongs together, and how
    many of the declared images are missing, as a site that protects its images has sent zeros."""
    told: dict[str, Any] = {"without": dict(without)} if without else {}
    if way:
        told["sums"] = way
    if ungrouped:
        told["ungrouped"] = list(ungrouped)
    if way == MASKED and missing > 0:
        told["missing"] = missing
    return told


def why_nobody(without: Mapping[str, str]) -> str:
    """Why there are no sums, by why each site has sent none."""
    reasons = {*without.values()}
    return reasons.pop() if len(reasons) == 1 else NOBODY


@dataclass(frozen=True)
class _Summed:
    """What follows from the sums of all sites and of each; `fit` is the temperature, the number of
    images that it was fitted to, and why it is not what was asked; `by`: which images are covered,
    `way`: how the sums travelled, `ungrouped`: the sites that do not know what belongs together.
    """

    federation: Federation
    total: CountSums
    by_site: Mapping[str, _OfSite]
    fit: tuple[float, int, str]
    by: str
    way: str
    ungrouped: Sequence[str]

    def all(self, without: Mapping[str, str], declared: int | None) -> Trusted:
        """Everything; `without`: why sites are not in it; `declared`: how many images these have
        that the temperature was not fitted to, if that is known."""
        settings, scaling = self.federation.program.trust, TemperatureScaling(self.fit[0])
        names = {name: one.cover for name, one in self.by_site.items() if one.cover.any()}
        groups = self.total.cover.sum(0) if self.total.grouped else None
        sets = Sets(settings.sets, self.total.cover, names, groups)
        calibration, diagrams = self._calibration(scaling)
        ood = self._unlike()
        summary = {"calibration": calibration, "sets": self._sets(sets), "ood": ood}
        ungrouped = self.ungrouped if self.total.grouped else []
        missing = 0 if declared is None else declared - int(self.total.images.sum())
        more = told_of_sums(self.way, without, ungrouped, missing)
        summary = {part: {**told, **more} for part, told in summary.items()}
        facts = {
            "scaling": plain(scaling),
            "by": self.by,
            "apart": False,
            "head": None,
            "sets": {**sets.plain(), "guarantee": settings.guarantee},
            "ood": ood,
            "reliability": diagrams,
        }
        return Trusted(summary, facts, {})

    @property
    def _grouped(self) -> dict[str, Any]:
        """Whether numbers of images are of groups."""
        return {"grouped": True} if self.total.grouped else {}

    def _calibration(self, scaling: TemperatureScaling) -> tuple[dict[str, Any], dict[str, Any]]:
        _, fitted, reason = self.fit
        both = [Reliability.of(counts) for counts in self.total.reliable_tested]
        told = calibration_told(
            (both[0], both[1]), self.total.brier.tolist(), scaling, self.federation.program.seed
        )
        told |= {"fitted": fitted, "tested": int(self.total.tested.sum()), "by": self.by}
        told["by_site"] = {
            name: one.calibration for name, one in self.by_site.items() if one.cover.any()
        }
        if reason:
            told["reason"] = reason
        return told, {"before": both[0].plain(), "after": both[1].plain()}

    def _sets(self, sets: Sets) -> dict[str, Any]:
        settings, images = self.federation.program.trust, int(self.total.cover.sum())
        asked, tested = settings.coverage, int(self.total.tested.sum())
        known: dict[str, Any] = {
            "method": sets.method, "guarantee": settings.guarantee, "asked": asked,
            "images": images, "tested": tested, "by": self.by, "smallest": smallest(asked),
            **self._grouped,
        }  # fmt: skip
        told = {
            name: self._at(sets, name) for name, one in self.by_site.items() if one.tested.any()
        }
        if settings.guarantee == SITE:
            each = [one for one in told.values() if one["coverage"] is not None]
            if not each:
                return {**known, "reason": NO_SITE if self.way == MASKED else FEW}
            means = {
                key: float(np.mean([one[key] for one in each])) for key in ("coverage", "size")
            }
            return {**known, **means, "by_site": told}
        try:
            limits = sets.limits(settings.guarantee, asked)
        except DataError as error:
            return {**known, "reason": error.cause, "cure": error.cure}
        share, mean = _held(self.total.tested, self.total.held, limits)
        known |= {"coverage": share, "size": mean, "by_site": told}
        if settings.guarantee == "mixture":
            known["threshold"] = float(limits[0])
            known["expected"] = list(covered(images, asked, tested))
        return known

    def _at(self, sets: Sets, name: str) -> dict[str, Any]:
        """How the sets do at one site, by the guarantee that is chosen and by its own threshold."""
        one, settings = self.by_site[name], self.federation.program.trust
        told: dict[str, Any] = {"images": int(one.cover.sum())}
        for guarantee, key in ((settings.guarantee, ""), (SITE, "own_")):
            found: tuple[float | None, float | None] = (None, None)
            with contextlib.suppress(DataError):  # too few images
                limits = sets.limits(guarantee, settings.coverage, name)
                found = _held(one.tested, one.held, limits)
            told |= {f"{key}coverage": found[0], f"{key}size": found[1]}
        return told

    def _unlike(self) -> dict[str, Any]:
        asked, total = self.federation.program.trust.false_alarm, self.total
        images, tested = int(total.cover.sum()), int(total.tested.sum())
        told = {
            "score": "energy", "asked": asked, "images": images, "tested": tested, "by": self.by,
            **self._grouped,
        }  # fmt: skip
        limit = threshold(total.energy_cover, 1 - asked)
        if limit is None:
            return {**told, "reason": few(images, smallest(1 - asked))}
        if limit >= 1:
            return {**told, "reason": ENDED}
        beyond = int(total.energy_tested[round(limit * BINS) :].sum())
        return {**told, "threshold": limit, "false_alarm": beyond / tested}


@dataclass(frozen=True)
class _OfSite:
    """What is told of one site: how far its confidence is off, and, of its own images and those it
    has tested, the histograms that its sets are made of and judged by.

    `cover` [BINS]; `tested` and `held` are summed over the classes [1, BINS], which all have the
    same threshold, but where each class has its own [classes, BINS].
    """

    calibration: dict[str, Any]
    cover: Tensor
    tested: Tensor
    held: Tensor

    @classmethod
    def of(cls, sums: CountSums, guarantee: str) -> Self:
        """What is told of these sums. An answer has 2^24 images at most."""
        both = [sums.tested, sums.held]
        if guarantee != CLASS:
            both = [one.sum(0, keepdim=True) for one in both]
        tested, held = (one.to(torch.int32) for one in both)
        return cls(_site(sums), sums.cover.sum(0), tested, held)


def _site(one: CountSums) -> dict[str, Any]:
    """How far confidence is off on a site's own images that the temperature was not fitted to."""
    images = int(one.cover.sum())
    if images < FEWEST:
        return {"ece_before": None, "ece": None, "images": images}
    before, after = (Reliability.of(counts).ece for counts in one.reliable_cover)
    return {"ece_before": before, "ece": after, "images": images}


def _held(tested: Tensor, held: Tensor, limits: Tensor) -> tuple[float, float]:
    """The share of tested images whose sets, by these `limits` [classes], hold the true class, and
    the mean size of sets; of histograms by class, or of all where one limit is that of each."""
    bins = torch.where(limits.isfinite(), limits * BINS, BINS).round().to(torch.int64)
    stops = bins[: len(tested)].tolist()
    right = sum(int(row[:stop].sum()) for row, stop in zip(tested, stops, strict=True))
    sizes = sum(int(row[:stop].sum()) for row, stop in zip(held, stops, strict=True))
    images = int(tested.sum())
    return right / images, sizes / images
