"""How far the answers of a run's model can be trusted: what summary and run folder say of it.

All of it follows from sums of whole numbers over images. They are the same whether sites add up
their own or, as here in a simulation, all images are added at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.evaluation.evidence import weights
from fedsight.evaluation.figures import Evaluator
from fedsight.evaluation.overall import Final
from fedsight.evaluation.trust.answers import Answers, Respondent
from fedsight.evaluation.trust.calibration import UNIT, brier
from fedsight.evaluation.trust.conformal import covered, histogram, smallest, threshold
from fedsight.evaluation.trust.images import TrustImages, learnt_from, trust_images
from fedsight.evaluation.trust.reliability import FEWEST, Reliability, counted
from fedsight.evaluation.trust.scaling import (
    Scaling,
    TemperatureScaling,
    few,
    fitted,
    plain,
)
from fedsight.evaluation.trust.sets import SITE, Sets
from fedsight.evaluation.trust.unlike import Distance, FeatureSums, energy
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.program.views import listed

PARTS = ("calibration", "sets", "ood")  # of the summary
OFF = "trust.measured is false"
TASK = "they are made for tasks that give each input one class by its score"
MASKED = "sites' sums are masked, and these would travel beside the masks"
NOISED = "noise protects what travels, and these would travel without"
AWAY = "the inputs are at the sites, which do not send these sums"
UNLABELLED = "some sites do not label all classes"
ENDED = "held-out inputs are as unlike the training as the scale goes"
INFINITE = "the model's answers to some inputs are not finite"
FEW = "there are too few inputs that nobody trained on"


@dataclass(frozen=True)
class Trusted:
    """What is known: the summary's parts, the content of `trust.json`, and the tensors that tell
    an image's distance from those of the training; the latter two are empty if nothing is."""

    summary: Mapping[str, Any]
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def left_out(cls, reason: str, without: Mapping[str, str] | None = None) -> Trusted:
        """Nothing, for a reason; `without`: why each site has sent nothing."""
        told: dict[str, Any] = {"reason": reason, **({"without": dict(without)} if without else {})}
        return cls({part: dict(told) for part in PARTS}, {}, {})

    def doubting(self, doubts: Mapping[str, str]) -> Trusted:
        """The same, with why sites in the masked sums may have cheated, by name."""
        if not doubts:
            return self
        told = {part: {**one, "doubts": dict(doubts)} for part, one in self.summary.items()}
        return Trusted(told, self.facts, self.tensors)


def why_not(federation: Federation, local: bool) -> str | None:
    """Why nothing of this is measured; None if it is. `local`: the images are on this machine."""
    program = federation.program
    if not program.trust.measured:
        return OFF
    if reason := out_of_reach(federation, local):
        return reason
    return None if program.task.scored and program.task.classed else TASK


def out_of_reach(federation: Federation, local: bool) -> str | None:
    """Why what sites' images say cannot be added up exactly; None if it can."""
    program = federation.program
    if program.secure.masks:
        return MASKED
    if program.privacy.protects:
        return NOISED
    if not local:
        return AWAY
    return UNLABELLED if federation.hidden is not None else None


def trusted(final: Final, local: bool) -> Trusted:
    """Measure it for the model that a run ended with."""
    if reason := why_not(final.federation, local):
        return Trusted.left_out(reason)
    federation = final.federation
    apart = federation.program.differs(federation.network)
    return Measured(federation, Respondent.of(final, apart), trust_images(federation, apart)).all()


class Measured:
    """The answers to all images, and what follows from them."""

    def __init__(self, federation: Federation, asks: Respondent, images: TrustImages) -> None:
        self._federation, self._asks = federation, asks
        self._settings, self._by = federation.program.trust, images.by
        images = images.by_group(federation)
        self.grouped = images.grouped  # groups of images, such as a patient's, count as one
        self._near = self._settings.unlike == "distance" and self._asks.sees_features
        self._evaluator = Evaluator(federation)
        self._fitted = self._asks.answers(images.fitted)
        self._cover = self._asks.answers(images.cover, self._near)
        self._tested = self._asks.answers(images.tested, self._near)

    def all(self) -> Trusted:
        """Everything; without images nothing."""
        if not (len(self._cover) and len(self._tested)):
            return Trusted.left_out(self._too_few)
        if not self._finite:
            return Trusted.left_out(INFINITE)
        calibration, diagrams = self._calibration()
        sets, ood, tensors = self._sets_told(), *self._unlike()
        facts = {
            "scaling": plain(self.scaling),
            "by": self._by,
            "apart": self._asks.apart,
            "head": self._asks.head if self._near else None,
            "sets": {**self.sets.plain(), "guarantee": self.guarantee},
            "ood": ood,
            "reliability": diagrams,
        }
        return Trusted({"calibration": calibration, "sets": sets, "ood": ood}, facts, tensors)

    @property
    def _finite(self) -> bool:
        """Whether all answers are: a model may overflow on a single image."""
        every = (self._fitted, self._cover, self._tested)
        return all(bool(torch.isfinite(one.logits).all()) for one in every)

    @property
    def _too_few(self) -> str:
        """Why nothing is made of no images."""
        return FEW

    @property
    def guarantee(self) -> str:
        """For whom the sets are made."""
        return self._settings.guarantee

    def _learnt(self) -> SiteData:
        """The images that unlike ones are compared with."""
        return learnt_from(self._federation)

    @cached_property
    def _scaled(self) -> tuple[Scaling, str]:
        return fitted(self._settings.scaling, self._fitted.logits, self._fitted.labels)

    @property
    def scaling(self) -> Scaling:
        """What makes probabilities of scores."""
        return self._scaled[0]

    def _shares(self, answers: Answers) -> Tensor:
        """The probabilities [n, classes] after scaling."""
        return self.scaling.shares(answers.logits)

    def _calibration(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the summary says, and the bins of the diagrams."""
        tested, images = self._tested, len(self._tested)
        before, after = torch.softmax(tested.logits.double(), 1), self._shares(tested)
        one = Reliability.of(counted(before, tested.labels))
        other = Reliability.of(counted(after, tested.labels, tested.logits.argmax(1)))
        squares = [brier(shares, tested.labels) for shares in (before, after)]
        seed = self._federation.program.seed
        told = {
            **calibration_told((one, other), squares, self.scaling, seed),
            "fitted": len(self._fitted),
            "tested": images,
            "by": self._by,
            "by_site": self._calibration_by_site(),
        }
        if reason := self._scaled[1]:
            told["reason"] = reason
        return told, {"before": one.plain(), "after": other.plain()}

    def _calibration_by_site(self) -> dict[str, Any]:
        """On each site's own images that the temperature was not fitted to."""
        found: dict[str, dict[str, Any]] = {}
        for name, own in self._own.items():
            if len(own) < FEWEST:
                found[name] = {"ece_before": None, "ece": None, "images": len(own)}
                continue
            before = counted(torch.softmax(own.logits.double(), 1), own.labels)
            after = counted(self._shares(own), own.labels, own.logits.argmax(1))
            found[name] = {
                "ece_before": Reliability.of(before).ece,
                "ece": Reliability.of(after).ece,
                "images": len(own),
            }
        return found

    @cached_property
    def _own(self) -> dict[str, Answers]:
        """The answers that sets have to cover, by the name of each listed site that has some."""
        names, there = self._federation.partition.name, set(self._cover.origins.tolist())
        sites = [site for site in listed(self._federation.partition) if site in there]
        return {names(site): self._cover.of_site(site) for site in sites}

    @cached_property
    def sets(self) -> Sets:
        """The histograms of all held-out images by class, and of each listed site."""
        method, whole = self._settings.sets, self._cover
        shares = self._shares(whole)
        counts = Sets.counted(method, shares, whole.labels, whole.logits)
        sites = {
            name: Sets.counted(method, self._shares(own), own.labels, own.logits).sum(0)
            for name, own in self._own.items()
        }
        return Sets(method, counts, sites, counts.sum(0) if self.grouped else None)

    @cached_property
    def _sizes(self) -> dict[str, Any]:
        """How many images, or groups, are covered and tested."""
        told = {"images": len(self._cover), "tested": len(self._tested), "by": self._by}
        return {**told, "grouped": True} if self.grouped else told

    def _sets_told(self) -> dict[str, Any]:
        """What the summary says of the sets, as the tested images show them."""
        asked, guarantee, sets = self._settings.coverage, self._settings.guarantee, self.sets
        known: dict[str, Any] = {
            "method": sets.method, "guarantee": guarantee, "asked": asked, **self._sizes,
            "smallest": smallest(asked),
        }  # fmt: skip
        names = self._federation.partition.name
        sites = {
            names(site): told
            for site in self._evaluator.sites
            if (told := self._at(site, names(site))) is not None
        }
        if guarantee == SITE:
            each = [one for one in sites.values() if one["coverage"] is not None]
            if not each:
                return {**known, "reason": FEW, **self._toofew()}
            return {
                **known,
                "coverage": float(np.mean([one["coverage"] for one in each])),
                "size": float(np.mean([one["size"] for one in each])),
                "by_site": sites,
            }
        try:
            limits = sets.limits(guarantee, asked)
        except DataError as error:
            return {**known, "reason": error.cause, "cure": error.cure}
        inside, images = self._scores <= limits, len(self._tested)
        share = int(inside.gather(1, self._tested.labels[:, None]).sum()) / images
        size = int(inside.sum()) / images
        told = {**known, "coverage": share, "size": size, "by_site": sites}
        if guarantee == "mixture":
            told["threshold"] = float(limits[0])
            told["expected"] = list(covered(len(self._cover), asked, len(self._tested)))
        return told

    def _toofew(self) -> dict[str, str]:
        """Why the site with the most held-out images has no sets of its own."""
        sizes = {name: int(counts.sum()) for name, counts in self.sets.sites.items()}
        try:
            largest = max(sizes, key=lambda name: sizes[name], default=None)
            self.sets.limits(SITE, self._settings.coverage, largest)
        except DataError as error:
            return {"reason": error.cause, "cure": error.cure}
        return {}

    def _at(self, site: int, name: str) -> dict[str, Any] | None:
        """How the sets do in a site's own mix of images: by the guarantee that is chosen, and by
        the site's own threshold; None if nothing is tested for it."""
        mine = self._tested.origins == site
        if not bool(mine.any()):
            mine = self._tested.origins < 0
        labels = self._tested.labels[mine]
        weight = torch.from_numpy(weights(labels.numpy(), self._evaluator.mix_of(site)))
        if not bool(weight.any()):
            return None
        counts, each = self.sets.sites.get(name), self._scores[mine]
        told: dict[str, Any] = {"images": 0 if counts is None else int(counts.sum())}
        for guarantee, key in ((self._settings.guarantee, ""), (SITE, "own_")):
            found: tuple[float | None, float | None] = (None, None)
            with contextlib.suppress(DataError):  # too few images
                limits = self.sets.limits(guarantee, self._settings.coverage, name)
                found = held(each <= limits, labels, weight)
            told |= {f"{key}coverage": found[0], f"{key}size": found[1]}
        return told

    @cached_property
    def _scores(self) -> Tensor:
        """The scores [n, classes] of the tested images, by which sets are made."""
        return self.sets.scores(self._shares(self._tested), self._tested.logits)

    def _unlike(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the summary says of unlike images, and the tensors that tell them."""
        fitted = self._distance() if self._near else None
        scores = [
            energy(one.logits) if fitted is None else fitted.scores(one.features)
            for one in (self._cover, self._tested)
        ]
        asked = self._settings.false_alarm
        told = {
            "score": "energy" if fitted is None else "distance", "asked": asked, **self._sizes,
        }  # fmt: skip
        limit = threshold(histogram(scores[0]), 1 - asked)
        if limit is None:
            return {**told, "reason": few(told["images"], smallest(1 - asked))}, {}
        if limit >= 1:
            return {**told, "reason": ENDED}, {}
        alarms = float((scores[1] > limit).double().mean())
        tensors = {}
        if fitted is not None:
            tensors = {
                "mixing": self._asks.mixing, "whitening": fitted.whitening, "means": fitted.means
            }  # fmt: skip
        return {**told, "threshold": limit, "false_alarm": alarms}, tensors

    def _distance(self) -> Distance:
        """From the features of training images."""
        learnt = self._asks.answers([self._learnt()], features=True)
        classes = len(self._federation.dataset.classes)
        return FeatureSums.of(learnt.features, learnt.labels, classes).fitted()


def calibration_told(
    both: tuple[Reliability, Reliability], squares: Sequence[int], scaling: Scaling, seed: int
) -> dict[str, Any]:
    """What the summary says of how right confidence is, before and after `scaling`, by the bins of
    the tested images and their sums of squares (`brier`)."""
    one, other = both
    images = int(other.images.sum())
    return {
        "ece_before": one.ece,
        "ece": other.ece,
        "ece_interval": list(other.interval(seed)),
        "ece_naive": other.naive,
        "rms": math.sqrt(max(0.0, other.square)),
        "scaling": scaling.kind,
        **(scaling.plain() if isinstance(scaling, TemperatureScaling) else {}),
        "brier_before": squares[0] / UNIT / images,
        "brier": squares[1] / UNIT / images,
    }


def held(inside: Tensor, labels: Tensor, weight: Tensor) -> tuple[float, float]:
    """The share of sets [n, classes] that hold the true class [n], and their mean size, where
    images have a `weight` [n]; weights sum to 1."""
    right = inside.gather(1, labels[:, None]).squeeze(1).double()
    return float(weight @ right), float(weight @ inside.sum(1).double())
