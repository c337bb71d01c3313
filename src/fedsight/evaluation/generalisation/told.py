"""What the summary says of over-fitting and of robustness: federated, pooled, and sites alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from fedsight.client.members import Members
from fedsight.client.step import Client
from fedsight.core.intervals import apart, of_mean, wilson
from fedsight.data.corruptions import CORRUPTIONS, SEVERITIES
from fedsight.evaluation.baselines import POOLED
from fedsight.evaluation.figures import Evaluator, Figures
from fedsight.evaluation.generalisation.exam import ITSELF, Exam, Examiner, share, unasked
from fedsight.evaluation.overall import Final
from fedsight.program.views import listed

PARTS = ("overfitting", "robustness")  # of the summary
DEGRADED = "degraded_"  # so begin the figures of a task that measures degraded images itself
LEAST = 10  # training images from which a site has a gap


def left_out(reason: str) -> dict[str, Any]:
    """Nothing, for a reason."""
    return {part: {"reason": reason} for part in PARTS}


def itself(figures: Mapping[str, float]) -> dict[str, Any]:
    """What to say of robustness where the task has measured degraded images itself: noised figures
    have none of them, and those that a site withholds are none."""
    measured = any(name.startswith(DEGRADED) for name in figures)
    return {"robustness": {"reason": ITSELF}} if measured else {}


def told(
    final: Final, evaluator: Evaluator, figures: Figures, baselines: Mapping[str, Any]
) -> dict[str, Any]:
    """Both parts of the summary. `baselines` is what is known of each finished one, by its job
    number as a string; empty if there are none."""
    federation = final.federation
    whole, sites = _federated(final, evaluator)
    pooled, names = _baseline(baselines, POOLED), federation.partition.name
    arms = [
        _Site(
            names(site),
            _delivered(baselines, site)
            or _Arm(exam, figures.by_site.get(names(site), {}).get("score")),
            _baseline(baselines, site),
        )
        for site, exam in sites.items()
    ]
    overall = {
        "federated": None if whole is None else _Arm(whole, share(figures)),
        "pooled": pooled,
    }
    tested, reason = len(federation.dataset.test), unasked(federation)
    return {
        "overfitting": {
            **{name: None if one is None else one.gap(tested) for name, one in overall.items()},
            **_at_sites(arms, lambda arm: arm.distance),
        },
        "robustness": {
            **{name: None if one is None else one.corrupted() for name, one in overall.items()},
            **_at_sites(arms, lambda arm: arm.exam.mean),
            "corruptions": list(CORRUPTIONS),
            "severities": SEVERITIES,
        }
        if reason is None
        else {"reason": reason},
    }


@dataclass(frozen=True)
class _Arm:
    """A model's exam, and its share of right answers on all test images, or in a site's mix of
    classes."""

    exam: Exam
    tested: float | None

    @property
    def enough(self) -> bool:
        """Whether it was asked enough training images to tell a gap."""
        return self.exam.images >= LEAST

    @property
    def distance(self) -> float | None:
        """How much better it is on images that it knows: the generalisation gap."""
        if self.exam.trained is None or self.tested is None or isnan(self.tested):
            return None
        return self.exam.trained - self.tested if self.enough else None

    def gap(self, images: int) -> dict[str, Any]:
        """Both shares and their difference, with its 95 % interval; `images` were tested."""
        trained, tested, found = self.exam.trained, self.tested, self.distance
        known = {"train": trained, "test": tested, "gap": found, "images": self.exam.images}
        if trained is None or tested is None or found is None:
            return known
        first = (trained, wilson(trained, self.exam.images))
        bounds = apart(first, (tested, wilson(tested, images)))
        return known if any(map(isnan, bounds)) else known | {"interval": list(bounds)}

    def corrupted(self) -> dict[str, Any]:
        """The shares on clean and corrupted images."""
        exam = self.exam
        kinds = {kind: list(each) for kind, each in exam.corrupted.items()}
        return {"clean": exam.clean, "corrupted": exam.mean, "by_kind": kinds}


@dataclass(frozen=True)
class _Site:
    """One site: the model that it gets from the federation, and its own."""

    name: str
    federated: _Arm
    alone: _Arm | None


def _baseline(known: Mapping[str, Any], job: int) -> _Arm | None:
    """A finished baseline; None if it was not trained, or not examined."""
    one = known.get(str(job), {})
    if "exam" not in one:
        return None
    exam = Exam.of(one["exam"])
    return _Arm(exam, exam.tested if job == POOLED else one["own_score"])


def _delivered(known: Mapping[str, Any], site: int) -> _Arm | None:
    """The model that a site chose; None if it had no images to choose by."""
    one = known.get(str(site), {}).get("delivered", {})
    return _Arm(Exam.of(one["exam"]), one["score"]) if "exam" in one else None


def _at_sites(sites: list[_Site], of: Callable[[_Arm], float | None]) -> dict[str, Any]:
    """A figure of each site, and the means over sites where both are known."""
    by_site, both = dict[str, dict[str, float | None]](), list[tuple[float, float]]()
    for site in sites:
        ours, own = of(site.federated), None if site.alone is None else of(site.alone)
        by_site[site.name] = {"federated": ours, "alone": own}
        if ours is not None and own is not None:
            both.append((ours, own))
    if not both:
        return {"by_site": by_site}
    low, high = of_mean([ours - own for ours, own in both])
    federated, alone = (float(np.mean(each)) for each in zip(*both, strict=True))
    return {
        "by_site": by_site,
        "sites": {
            "federated": federated,
            "alone": alone,
            "difference": federated - alone,
            "interval": None if isnan(low) else [low, high],
        },
    }


def _federated(final: Final, evaluator: Evaluator) -> tuple[Exam | None, dict[int, Exam]]:
    """The exam of the common model (None: sites have models of their own), and of each site's."""
    federation = final.federation
    clients = Members(federation, lambda member: Client(member, final.speed))
    if federation.program.differs(federation.network):
        return None, dict(_own(final, evaluator, clients))
    client = clients.of(None)
    client.load(final.vector, {})
    examiner = Examiner(federation, evaluator, client)
    return examiner.of_all(), {
        site: examiner.of_site(site) for site in listed(federation.partition)
    }


def _own(
    final: Final, evaluator: Evaluator, clients: Members[Client]
) -> Iterator[tuple[int, Exam]]:
    federation = final.federation
    for site in listed(federation.partition):
        kept = final.memory.latest(federation.partition.name(site))
        client = clients.loaded(final.vector, site, kept)
        if client is not None:  # it has trained
            yield site, Examiner(federation, evaluator, client).of_site(site)
