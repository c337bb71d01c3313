"""The choice of the model that a site gets, on images of its own that nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsight.client.step import Client
from fedsight.evaluation.delivery.base import SHARED, Candidate, SiteModels, deliveries
from fedsight.evaluation.evidence import answered, weights
from fedsight.evaluation.figures import Evaluator, Mix
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.tasks.unlabelled import known_shares

LEAST = 20  # held-out images; with fewer, chance would choose
HALF = 0.5  # strength of a correction that nothing was fitted to
# A model's scores are compared at the temperature that suits them best: how sure a model is of its
# answers can be corrected afterwards, which of them are likelier cannot.
TEMPERATURES = tuple(2.0**power for power in np.arange(-5, 5.01, 0.5))


@dataclass(frozen=True)
class HeldOut:
    """A site's validation images, the label mix by which they count (None: all alike), and the
    evaluator that makes figures of them."""

    data: SiteData
    mix: Mix | None
    evaluator: Evaluator

    @classmethod
    def of(cls, federation: Federation, site: int) -> HeldOut | None:
        """Those of `site` in the federation; None if it has fewer than LEAST."""
        checked = federation.validating
        return None if checked is None else cls.tested_by(checked, site)

    @classmethod
    def tested_by(cls, checked: Federation, site: int) -> HeldOut | None:
        """Those that are the test images of `site` in `checked`; None if they are fewer than
        LEAST, or the task has no figure of some images by themselves."""
        if checked.program.task.whole:
            return None
        evaluator = Evaluator(checked)
        number = evaluator.view(site)
        if number is None:
            return None
        found = cls(checked.tested(checked.views[number]), evaluator.mix_of(site), evaluator)
        return found if found.images >= LEAST else None

    @property
    def images(self) -> int:
        """How many of them count: those of the site's classes."""
        return int((self._weights() > 0).sum())

    def _weights(self) -> npt.NDArray[np.float64]:
        return weights(self.data.labels().numpy(), self.mix)

    def figure(self, client: Client) -> float:
        """The task's headline figure of the model that `client` has loaded."""
        return self.evaluator.score(client.measure_all(self.data), self.mix)

    def loss(self, client: Client) -> float:
        """How bad the loaded model is: lower is better, infinite where it cannot be told.

        Where the task scores classes: the mean logarithmic loss at the best of TEMPERATURES, which
        tells models apart with far fewer images than a share of right answers does. For other
        tasks: one minus the headline figure.
        """
        if not client.federation.program.task.scored:
            figure = self.figure(client)
            return np.inf if np.isnan(figure) else 1.0 - figure
        scores, labels = _scores(client, self.data), self.data.labels()
        weight = torch.from_numpy(self._weights())
        losses = [
            float(weight @ F.cross_entropy(scores / heat, labels, reduction="none"))
            for heat in TEMPERATURES
        ]
        return min(losses) if np.isfinite(losses).all() else np.inf


@dataclass(frozen=True)
class Choice:
    """What a site gets, and how each kind did on the held-out images: the best of each."""

    taken: Candidate
    images: int
    losses: Mapping[str, float]
    figures: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        """The choice as values for JSON."""
        return {
            "kind": self.taken.kind,
            "settings": dict(self.taken.settings),
            "held_out": self.images,
            "by_kind": {
                kind: {"loss": _known(loss), "figure": _known(self.figures[kind])}
                for kind, loss in self.losses.items()
            },
        }


def choose(at: SiteModels, held_out: HeldOut) -> Choice:
    """The candidate with the lowest loss on the held-out images; of equal ones the one that is
    nearest the shared model."""
    best: dict[str, tuple[float, Candidate]] = {}
    kinds = sorted(map(deliveries.get, deliveries.names()), key=lambda kind: kind.nearest)
    for kind in kinds:
        for candidate in kind().candidates(at):
            loss = held_out.loss(at.load(candidate.vector))
            if candidate.kind not in best or loss < best[candidate.kind][0]:
                best[candidate.kind] = loss, candidate
    taken = min(best.values(), key=lambda found: found[0])[1]
    figures = {
        kind: held_out.figure(at.load(candidate.vector)) for kind, (_, candidate) in best.items()
    }
    losses = {kind: loss for kind, (loss, _) in best.items()}
    return Choice(taken, held_out.images, losses, figures)


def decided(at: SiteModels, held_out: HeldOut | None, known: bool) -> Choice:
    """What a site gets that has these images to choose by, or none.

    `known`: the label proportions of the others are, and the model is one of all sites: half a
    correction suits such a model unseen.
    """
    if held_out is not None:
        return choose(at, held_out)
    return unchosen(at if known else replace(at, offsets=None))


def unchosen(at: SiteModels) -> Choice:
    """What a site gets that has too few images to choose by: a correction of half strength, or the
    shared model as it is where that cannot be corrected."""
    corrected = deliveries.get("corrected")().candidates(at)
    half = (one for one in corrected if one.settings["strength"] == HALF)
    return Choice(next(half, Candidate(SHARED, at.shared)), 0, {}, {})


def offsets(
    federation: Federation, site: int, known: bool = True
) -> npt.NDArray[np.float64] | None:
    """The logarithms [classes] of each class's share at `site` over its share in the federation.

    Half an image is added to each count. Where the counts of the others are not `known`, or privacy
    hides them, all classes count as equally frequent there. A class that the site does not label
    keeps its score. None if the task does not score classes.
    """
    program, dataset, partition = federation.program, federation.dataset, federation.partition
    if not program.task.scored:
        return None
    classes = len(dataset.classes)
    own = dataset.train.counts(classes, partition.indices(site)) + 0.5
    labelled = np.ones(classes, dtype=bool)
    if federation.hidden is not None:
        labelled = ~federation.hidden[site].numpy()
    if program.privacy.protects or not known:
        found = np.log(own / own[labelled].mean())
        return np.where(labelled, found, 0.0)
    sites = [partition.indices(number) for number in range(len(partition))]
    everybody = dataset.train.counts(classes, np.concatenate(sites)) + 0.5
    ours, theirs = (counts / counts[labelled].sum() for counts in (own, everybody))
    return np.where(labelled, np.log(ours) - np.log(theirs), 0.0)


def _scores(client: Client, data: SiteData) -> Tensor:
    """Log-probabilities [n, classes] float64 of the images."""
    task = client.federation.program.task
    shares = answered(
        client, data, lambda model, batch: known_shares(task.predict(model, batch.x), batch)
    )
    return shares.double().clamp_min(1e-12).log()


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
