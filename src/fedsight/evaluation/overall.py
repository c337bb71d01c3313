"""The 95 % intervals of the figures of all test images together, or why there are none.

Where the sums of the test part tell how sure a figure is, the task makes its interval from them
(`Evaluation.intervals`). Where they do not (pixels of one image go together, and so do its boxes
and the images of one patient), images are left out group by group, the last model is measured on
the others, and the interval is that of the jackknife (Tukey 1958).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedsight.client.members import Members
from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.intervals import Z, wilson
from fedsight.core.threads import one_thread
from fedsight.core.types import Memory, Metrics, add_metrics
from fedsight.data.base import Part
from fedsight.evaluation.attempts import INTERVALS
from fedsight.evaluation.evidence import GROUPS, LEAST, T, some, without_each
from fedsight.evaluation.figures import Evaluator, Figures
from fedsight.program.federation import Federation
from fedsight.program.program import Speed

MOST = 2000  # test images that are measured once more; of more, the spread is scaled
SHOWN = GROUPS // 2  # groups that must show a class, so that its figure has a spread

AVERAGED = "it is the mean of models of the sites' own, on the same test images"
FAILED = "it could not be computed"
AWAY = "the test images are at the sites, and the sums that these send do not tell it"
NOISED = "sites add noise to their figures"
FEW = f"it needs {LEAST} test images, or groups of them"
RARE = "a class is shown by too few test images"
ALIKE = "no test image makes a difference to it"
PEOPLE = "there are too few people, or none of their pairs is on the wrong side"
UNTOLD = "the sums of the test part do not tell it"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """The intervals of overall figures by name, and why the main one has none (or empty)."""

    known: Mapping[str, Interval]
    reason: str = ""


@dataclass(frozen=True)
class Final:
    """The model that a run ends with: its vector, and what sites keep."""

    federation: Federation
    speed: Speed
    vector: torch.Tensor
    memory: MemoryStore


def intervals(final: Final, evaluator: Evaluator, figures: Figures, local: bool) -> Intervals:
    """The intervals of the overall `figures`; `local`: the test images are on this machine."""
    federation = final.federation
    task, known = federation.program.task, dict(figures.intervals)
    if not figures.sums or not math.isfinite(figures.overall["score"]):
        return Intervals({})
    if evaluator.site_test == "whole test part":
        return Intervals({}, AVERAGED)
    if not task.whole and _grouped(federation.dataset.test):
        known = {}  # sums take images as independent
    reason = ""
    if task.headline not in known:
        if task.whole:
            reason = PEOPLE
        elif figures.errors:
            reason = NOISED
        elif not local:
            reason = FAILED if INTERVALS in figures.failed else AWAY
        else:
            more, reason = _jackknife(final, evaluator, figures)
            known |= more
    if task.headline in known:
        known["score"] = known[task.headline]
    return Intervals(known, "" if "score" in known else reason or UNTOLD)


def _jackknife(
    final: Final, evaluator: Evaluator, figures: Figures
) -> tuple[dict[str, Interval], str]:
    """The intervals of the task's figures that are shares, or why there are none."""
    task = final.federation.program.task
    folds, part = _folds(final.federation)
    if folds is None:
        return {}, FEW
    groups = _measured(final, folds)
    if any(one is None for one in groups):
        return {}, FEW
    measured = [one for one in groups if one is not None]
    shown = np.array([task.occurring(one) for one in measured]).sum(axis=0)
    if ((shown > 0) & (shown < SHOWN)).any():
        return {}, RARE
    left = [evaluator.summary(one) for one in without_each(measured)]
    names = {task.headline, *task.figures} - task.falling()
    found = {}
    for name in names:
        values = [one[name] for one in left]
        bounds = interval(figures.overall[name], values, part)
        if not math.isnan(bounds[0]):
            found[name] = bounds
    return found, "" if task.headline in found else ALIKE


def interval(figure: float, left: Sequence[float], part: float = 1.0) -> Interval:
    """The 95 % interval of a share, from what it is without each of GROUPS groups of images.

    It is what Wilson (1927) gives a share of as many images as would have that spread, so it does
    not reach beyond 1; `part` is the share of all images that the groups hold. NaN where the
    spread is not known, or the figure is 0 or 1.
    """
    values = np.asarray(left)
    if not np.isfinite(values).all() or not 0 < figure < 1:
        return math.nan, math.nan
    squares = float(np.square(values - values.mean()).sum())
    spread = math.sqrt((GROUPS - 1) / GROUPS * squares * part) * T / Z
    if spread < 1e-9:
        return math.nan, math.nan
    return wilson(figure, figure * (1 - figure) / spread**2)


def _grouped(test: Part) -> bool:
    """Whether some test images go together. Of remote images, of which a site may declare
    millions, no list is made: they have no groups."""
    return test.groups is not None and len(set(_units(test))) < len(test)


def _units(test: Part) -> npt.NDArray[np.int64]:
    """The number of the group of each test image [n]; one without a group is one of its own."""
    named: dict[str, int] = {}
    groups = test.groups or [None] * len(test)
    return np.array(
        [
            at if group is None else len(test) + named.setdefault(group, len(named))
            for at, group in enumerate(groups)
        ],
        np.int64,
    )


def _folds(federation: Federation) -> tuple[npt.NDArray[np.int64] | None, float]:
    """The group to leave out with each test image [n], -1 for those that are not measured, and the
    share that is; None for too few images. What belongs together is left out together."""
    units = _units(federation.dataset.test)
    names, sizes = np.unique(units, return_counts=True)
    if len(names) < LEAST:
        return None, 0.0
    order = np.random.RandomState(federation.program.seed % 2**32).permutation(len(names))
    # of many images the first, but always enough units to form the groups
    kept = max(int(np.searchsorted(np.cumsum(sizes[order]), MOST)) + 1, LEAST)
    fold = np.full(len(names), -1)
    fold[order[:kept]] = np.arange(len(order[:kept])) % GROUPS
    folds = fold[np.searchsorted(names, units)]
    return folds, float((folds >= 0).mean())


def _measured(final: Final, folds: npt.NDArray[np.int64]) -> list[Metrics | None]:
    """The sums of each group over all views; None for a group without an image."""
    federation = final.federation
    clients = Members(federation, lambda member: Client(member, final.speed))
    found: list[list[Metrics]] = [[] for _ in range(GROUPS)]
    for view in federation.views:
        kept: Memory = {}
        if view.site is not None:
            kept = final.memory.latest(federation.partition.name(view.site))
        client = clients.loaded(final.vector, view.site, kept)
        if client is None:  # it has never trained
            continue
        data, mine = federation.tested(view), folds[view.indices]
        with one_thread():
            for group in range(GROUPS):
                positions = torch.from_numpy(np.flatnonzero(mine == group))
                if len(positions):
                    found[group].append(client.measure_all(some(data, positions)))
    return [add_metrics(one) if one else None for one in found]
