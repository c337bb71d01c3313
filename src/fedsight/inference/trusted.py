"""Answers with what a run knows of them: calibrated, with a set that covers, marked if unlike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fedsight.coordinator.store import RunStore
from fedsight.core.errors import DataError, StoreError
from fedsight.evaluation.delivery.base import SHARED
from fedsight.evaluation.delivery.deliver import delivered_path
from fedsight.evaluation.trust.answers import watched
from fedsight.evaluation.trust.of_site import more_images
from fedsight.evaluation.trust.risk import Risk
from fedsight.evaluation.trust.saved import SavedTrust, kept, place_of
from fedsight.evaluation.trust.saved_risk import SavedRisk, kept_risk
from fedsight.evaluation.trust.sets import SITE
from fedsight.tasks.base import Task
from fedsight.tasks.presentation import Answer

MORE = "leave out --coverage, or have more test images like the site's own in a new run"
APART = "each site has a model of its own, and the sets are made of theirs"
Limits = Tensor | Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Cover:
    """Sets that hold the true class with at least the probability `share`; `abstain`: no answer
    where the set is not of one class, or the image is unlike those of the training.
    """

    share: float
    abstain: bool = False


@dataclass(frozen=True)
class Assessed:
    """An answer; the probability of its label after calibration; whether its image is unlike those
    of the training; the classes of its set, the most probable first. None: not known or asked."""

    answer: Answer
    calibrated: float | None = None
    unlike: bool | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Trusting:
    """What a run knows of the answers of one model, or (`why_not`) why it knows nothing."""

    known: SavedTrust | None = None
    site: str | None = None
    why_not: str = "its files do not say"
    risk: Risk | None = None  # for tasks whose answers are no set of classes
    cure: str = "leave out --coverage, or hold images out in a new run, by rounds.validation"

    @classmethod
    def at(
        cls, store: RunStore, task: Task, classes: int, site: str | None, delivered: bool
    ) -> Trusting:
        """What the run folder knows of its model of so many classes, as `site` has it; `delivered`:
        one of several sites chose what it has. StoreError if a file is broken."""
        found = _kept(store, task, classes, store.model)
        # Sets for the images of all sites hold for these, whoever chose the common model.
        common = found is not None and found.guarantee != SITE
        if delivered and site is not None and not (common and _kind(store, site) == SHARED):
            place, model = place_of(store.delivered, site), delivered_path(store.delivered, site)
            own = _kept(RunStore(place), task, classes, model)
            return cls._of(own, site, _reason_at(store, site), MORE)
        if found is not None and found.apart and site is None:
            return cls(why_not=APART, cure="name a site with --site")
        return cls._of(found, site, _reason(store), cls.cure)

    @classmethod
    def _of(
        cls, found: SavedTrust | SavedRisk | None, site: str | None, why_not: str, cure: str
    ) -> Trusting:
        if isinstance(found, SavedRisk):
            return cls(site=site, risk=found.risk)
        return cls(found, site, why_not, cure=cure)

    def limits(self, cover: Cover | None) -> Limits:
        """The largest scores [classes] of sets with this coverage, or the levels of answers that
        have it; None: none are asked for.

        Raises DataError where the run has none of this coverage.
        """
        if cover is None:
            return None
        if not 0 < cover.share < 1:
            cause = f"the coverage {cover.share:g} is not between 0 and 1"
            raise DataError(cause, "give for example 0.9")
        if self.risk is not None:
            if cover.abstain and not self.risk.covering.abstains:
                cause = "an answer of this task is not one label or none"
                raise DataError(cause, "leave out --abstain")
            return self.risk.levels(cover.share, self.site)
        if self.known is None:
            raise DataError(f"the run has no prediction sets: {self.why_not}", self.cure)
        try:
            return self.known.sets.limits(self.known.guarantee, cover.share, self.site)
        except DataError as error:
            if self.known.one_in is None:
                raise
            cure = more_images(cover.share, self.known.one_in)
            raise DataError(error.cause, cure) from None

    def answers(
        self, task: Task, module: nn.Module, x: Tensor, classes: tuple[str, ...],
        limits: Limits,
    ) -> list[Assessed]:  # fmt: skip
        """The task's answers for normalised images [b, c, h, w]."""
        known = self.known
        if self.risk is not None and isinstance(limits, Mapping):
            covered = self.risk.covering.answers(task, module, x, classes, limits)
            return [Assessed(one.answer, classes=one.classes) for one in covered]
        if known is None:
            return [Assessed(one) for one in task.answers(module, x, classes)]
        assert not isinstance(limits, Mapping)  # `known` gives no levels
        outputs: list[Tensor] = []
        head = _head(known, module)
        handle = module.register_forward_hook(lambda _, given, out: outputs.append(out))
        try:
            with watched(head) as seen:
                answers = task.answers(module, x, classes)
        finally:
            handle.remove()
        logits = outputs[-1].float()
        return _assessed(known, answers, logits, seen[-1] if seen else None, (classes, limits))


def _kept(store: RunStore, task: Task, classes: int, model: Path) -> SavedTrust | SavedRisk | None:
    """What a folder knows of the model in this file; None: nothing."""
    if task.covering is None:
        return kept(store, classes, model)
    return kept_risk(store, task.covering, classes, model)


def _head(known: SavedTrust, module: nn.Module) -> nn.Module | None:
    """The layer whose input is compared; None: none is. StoreError if what is known is not of this
    network."""
    found = None if known.head is None else dict(module.named_modules()).get(known.head)
    if known.mixing is None or (
        isinstance(found, nn.Linear) and len(known.mixing) == found.in_features
    ):
        return found
    raise StoreError("what the run knows of its answers is not of its network", "run it again")


def _assessed(
    known: SavedTrust,
    answers: Sequence[Answer],
    logits: Tensor,
    features: Tensor | None,
    asked: tuple[tuple[str, ...], Tensor | None],
) -> list[Assessed]:
    classes, limits = asked
    shares, unlike = known.calibrated(logits), known.unlike(logits, features)
    inside = None if limits is None else known.inside(limits, logits)
    found = []
    for at, answer in enumerate(answers):
        held = None
        if inside is not None:
            order = shares[at].argsort(descending=True, stable=True).tolist()
            held = tuple(classes[place] for place in order if bool(inside[at, place]))
        found.append(
            Assessed(
                answer,
                float(shares[at, int(logits[at].argmax())]),
                None if unlike is None else bool(unlike[at]),
                held,
            )
        )
    return found


def _reason(store: RunStore) -> str:
    """Why a run has measured nothing, as its summary says it; or that of a site's recogniser."""
    try:
        facts = store.read_json("run.json")
        if "recogniser" in facts:
            told = facts["recogniser"]["trust"]["sets"]
        else:
            told = store.read_json("summary.json").get("sets") or {}
    except (StoreError, KeyError, TypeError):
        return Trusting.why_not
    return str(told.get("reason") or Trusting.why_not)


def _reason_at(store: RunStore, site: str) -> str:
    """Likewise for the model that a site got."""
    try:
        told = store.read_json("comparison.json")["delivered"][site]["trust"]["sets"]
    except (StoreError, KeyError, TypeError):
        return Trusting.why_not
    return str(told.get("reason") or Trusting.why_not)


def _kind(store: RunStore, site: str) -> str | None:
    """Which kind of model a site got."""
    try:
        return str(store.read_json("comparison.json")["delivered"][site]["kind"])
    except (StoreError, KeyError, TypeError):
        return None
