"""Delivery at a real site, where a run has ended: chooses on images that its owner holds out.

A simulation knows all sites; a real one knows its own images and the model that it was sent. What
it chooses among, and how, are the same (`evaluation/delivery/choice.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.coordinator.callbacks import Callback, Event, RoundEnded
from fedsight.coordinator.store import RunStore
from fedsight.core.draws import draws
from fedsight.core.errors import ModelError
from fedsight.core.threads import one_thread
from fedsight.data.base import Indices, Part
from fedsight.evaluation.baselines import training
from fedsight.evaluation.delivery.base import (
    ALONE,
    HALF_OF_TEST,
    SHARED,
    VALIDATION,
    SiteModels,
)
from fedsight.evaluation.delivery.choice import LEAST, Choice, HeldOut, decided, offsets
from fedsight.evaluation.delivery.deliver import with_own
from fedsight.evaluation.evidence import Evidence, Witness, compared
from fedsight.evaluation.figures import Evaluator
from fedsight.program.budget import Budget
from fedsight.program.federation import Federation
from fedsight.program.program import Speed
from fedsight.program.views import View
from fedsight.program.workload import passes_of

KEEP_EVERY = 20.0  # seconds between two checkpoints of the model that is trained alone


@dataclass(frozen=True)
class FinalModel:
    """What a run of `round` rounds ended with: the model [travelling], the personal and frozen
    values [kept] that only the coordinator had the weights of, and what the site has of its own.

    The site's replies counted in `counted` of the rounds.
    """

    vector: Tensor
    kept: Tensor | None
    own: Tensor | None
    round: int
    counted: int


@dataclass(frozen=True)
class Chosen:
    """What a site gets: its tensors by name, and what is known of it, as values for JSON."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def choose_at_site(
    federation: Federation, site: int, final: FinalModel, speed: Speed, alone: RunStore | None
) -> Chosen:
    """Choose what `site` gets of the `final` model of its run.

    `alone`: where the checkpoints of a model are kept that is trained on the site's own images for
    comparison; None: none is trained. Raises ModelError if the model is not one of this program and
    these images.
    """
    if final.kept is not None:
        federation = federation.adopting(final.kept)
    shared = _tensors(federation, site, final)
    judged = _Judged.of(federation, site)
    mine = None if alone is None else _alone(federation, site, final, speed, alone)
    client = Client(judged.measuring.alone(site), speed)
    layout = client.layout
    known = len(federation.partition) > 1  # a sample that every site has
    odds = offsets(federation, site, known)
    at = SiteModels(
        client,
        speed,
        layout.vector(shared),
        None if mine is None else layout.vector(mine),
        None if odds is None else torch.from_numpy(odds).float(),
    )
    program = federation.program
    plain = known and not (program.differs(federation.network) or program.privacy.protects)
    with one_thread():
        choice = decided(at, judged.held_out, plain)
        tensors = layout.state_dict(choice.taken.vector)
        facts = {**choice.plain(), "chosen_on": judged.by, **_gain(at, site, choice)}
        return Chosen(tensors, facts)


@dataclass(frozen=True)
class _Judged:
    """The images that a site chooses by, and a federation whose test images measure the gain."""

    held_out: HeldOut | None
    measuring: Federation
    by: str | None

    @classmethod
    def of(cls, federation: Federation, site: int) -> _Judged:
        """The validation part, if the data have one; else one half of the site's test images, and
        the other half measures. All of them measure if they are too few to choose by."""
        data, (view,) = federation.dataset, federation.views
        if data.validation is not None and len(data.validation) >= LEAST:
            part, everything = data.validation, np.arange(len(data.validation))
            if data.test.sites is not None:
                part = replace(part, sites=[federation.partition.name(site)] * len(part))
            checked = replace(federation, dataset=replace(data, test=part, validation=None))
            held = HeldOut.tested_by(checked.testing((View(view.site, everything),)), site)
            if held is not None:
                return cls(held, federation, VALIDATION)
        seed = federation.program.seed, federation.partition.name(site)
        one, other = halves(data.test, view.indices, *seed)
        held = HeldOut.tested_by(federation.testing((replace(view, indices=one),)), site)
        if held is None:
            return cls(None, federation, None)
        rest = federation.testing((replace(view, indices=other),))
        return cls(held, rest, HALF_OF_TEST)


def halves(part: Part, chosen: Indices, seed: int, site: str) -> tuple[Indices, Indices]:
    """Two halves of the images `chosen` [n] of a part; what belongs together stays together."""
    groups: dict[object, list[int]] = {}
    for place in chosen.tolist():
        groups.setdefault(part.unit(place), []).append(place)
    whole = list(groups.values())
    first: list[int] = []
    for number in draws(seed, "delivery", site).permutation(len(whole)).tolist():
        if 2 * len(first) < len(chosen):
            first += whole[number]
    taken = set(first)
    second = [place for place in chosen.tolist() if place not in taken]
    return np.array(sorted(first), np.int64), np.array(second, np.int64)


def _tensors(federation: Federation, site: int, final: FinalModel) -> dict[str, Tensor]:
    """The final model by name: of the site's network, and with what is the site's own."""
    member, program = federation.member(site), federation.program
    layout, vector, own = member.layout, member.initial.clone(), final.own
    if len(final.vector) != federation.layout.travelling.stop or (
        own is not None and len(own) != len(vector[program.own(layout)])
    ):
        raise ModelError(
            "the model that the run ended with is not one for these images: their size, channels "
            "or classes have changed since",
            "restore the images and [data] of site.toml as they were during the run",
        )
    if not bool(torch.isfinite(final.vector).all()):
        raise ModelError(
            "the model that the run ended with holds weights that are not finite",
            "ask the operator: the run's own report would show it",
        )
    vector[layout.travelling] = member.received(final.vector)
    return with_own(member, vector, own)


@dataclass
class _Keeper(Callback):
    """Keeps checkpoints, so that an interruption costs little."""

    store: RunStore
    kept: float = 0.0

    def on(self, event: Event) -> None:
        """Keep the last one, and one now and then."""
        if isinstance(event, RoundEnded) and event.checkpoint is not None:
            now = time.monotonic()
            if event.last or now - self.kept >= KEEP_EVERY:
                self.store.save_checkpoint(event.checkpoint)
                self.kept = now


def _alone(
    federation: Federation, site: int, final: FinalModel, speed: Speed, store: RunStore
) -> dict[str, Tensor]:
    """The model that the site trains by itself, by name: as many passes over its images as the run
    took of them, in as many rounds, but not in more than there are images for."""
    images = federation.size(site)
    passes = final.counted * passes_of(federation.program, images)
    seen = math.ceil(passes * images)
    budget = Budget(min(final.round, seen), passes)
    baseline = federation.testing(()).alone(site, budget)
    start, keeper = store.load_checkpoint(), _Keeper(store, time.monotonic())
    with training(baseline, site, speed, [keeper], start) as (trained, _):
        return baseline.layout.state_dict(trained.vector)


def _gain(at: SiteModels, site: int, choice: Choice) -> dict[str, Any]:
    """How the chosen model does on images that nothing was chosen by, against the site's own model,
    or against the shared one where the site has not trained by itself."""
    evaluator = Evaluator(at.client.federation)
    against, other = (SHARED, at.shared) if at.alone is None else (ALONE, at.alone)
    ours, mine = _figure(at, site, evaluator, choice.taken.vector)
    theirs, yours = _figure(at, site, evaluator, other)
    gain = None if ours is None or theirs is None else 100 * (ours - theirs)
    return {
        "score": ours,
        "against": {"kind": against, "score": theirs},
        "gain": gain,
        **compared(evaluator, site, mine, yours),
    }


def _figure(
    at: SiteModels, site: int, evaluator: Evaluator, vector: Tensor
) -> tuple[float | None, Evidence | None]:
    """The figure of a model on the site's test images, and what it rests on."""
    number = evaluator.view(site)
    client = at.load(vector)
    if number is None or not len(evaluator.federation.views[number].indices):
        return None, None
    sums = client.measure_all(evaluator.federation.tested(evaluator.federation.views[number]))
    score = evaluator.score(sums, evaluator.mix_of(site))
    return (float(score) if np.isfinite(score) else None), Witness(evaluator, client).of(site)
