"""Computes figures from the views' metric sums: overall, per site, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from fedsight.core.intervals import widened
from fedsight.core.types import Metrics, Sum
from fedsight.evaluation import noised
from fedsight.evaluation.attempts import ERRORS, INTERVALS, Attempts
from fedsight.program.federation import Federation
from fedsight.program.views import listed

Mix = npt.NDArray[np.float64]  # label proportions [classes]
Errors = dict[str, float]  # by figure


@dataclass(frozen=True)
class Figures:
    """The figures of one model, or of one federation of personal models.

    Every set of figures has a `score`, the task's headline. A site without any test image of its
    classes has no figures and is not in `by_site`. `sums` are totals over all views; `site_sums`
    are each site's, where sites have their own views. All are empty if nothing was measured.

    Figures from noised sums are rounded to the digits that they carry; `errors` are the standard
    errors that noise gives the overall ones, `site_errors` those of sites.
    """

    overall: Mapping[str, float]
    by_site: Mapping[str, Mapping[str, float]]
    confusion: npt.NDArray[np.int64] | None
    sums: Mapping[str, Sum]
    site_sums: Mapping[str, Mapping[str, Sum]]
    errors: Mapping[str, float] = field(default_factory=dict)
    site_errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # the 95 % intervals of overall figures over other test images, as far as they are known
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)  # what could not be computed, and why


class Evaluator:
    """Computes figures by one rule for a whole comparison; `site_test` names the rule.

    - `own images`: the source assigns each test image to a site. Overall counts every image once.
    - `whole test part`: sites see shifted images or have personal models, so each is tested on
      all test images as it sees them. A site's figure weights each class by its share of the
      site's own images; the overall figure is the mean over sites.
    - `label mix`: one model, one test part. Overall counts every image once; a site's figure
      weights each class by its share of the site's own images.
    - `test part`: one model, one test part, and a task whose figures do not depend on how frequent
      classes are. A site's figure is the overall one.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.sites = listed(federation.partition)
        owners = [view.site for view in federation.views]
        if federation.dataset.test.sites is not None:
            self.site_test = "own images"
        else:
            alike = "label mix" if federation.program.task.mixes else "test part"
            self.site_test = alike if owners == [None] else "whole test part"

    def figures(
        self, sums: Sequence[Metrics], only: int | None = None, final: bool = False
    ) -> Figures:
        """Figures from the sums of the federation's views.

        A view without sums was not measured, because its site did not answer or released no
        figures; it is left out.
        `only` is the number of the site that the model belongs to, if it belongs to one: under
        `whole test part` the overall figure is then that site's. `final`: sites' figures get their
        errors too, which takes time.
        """
        if not any(sums):  # every site withholds its figures
            return Figures({}, {}, None, {}, {})
        task, summary = self.federation.program.task, self.summary
        everything, averaged = noised.total(sums, task), self.site_test == "whole test part"
        usable, parts = noised.usable(everything, task), self._parts(sums)
        by_site = {n: summary(noised.usable(own, task), mix) for n, (own, mix) in parts.items()}
        attempts, site_errors = Attempts(), dict[str, Errors]()
        if averaged:
            site_errors = self._errors(parts)
        elif final:
            site_errors = attempts.of(ERRORS, lambda: self._errors(parts), site_errors)
        if averaged:
            counted = list(parts) if only is None else [self.federation.partition.name(only)]
            overall = _means([by_site[name] for name in counted])
            errors = _errors_of_means([site_errors[name] for name in counted])
        else:
            overall, errors = summary(usable), noised.errors(everything, task, summary)
        found = usable.get("confusion")
        names = self.federation.partition.name
        # The mean over sites' models on the same images is no figure of independent images.
        known: Mapping[str, tuple[float, float]] = {}
        if final and not averaged:
            known = attempts.of(
                INTERVALS, lambda: _with_noise(task.intervals(usable), overall, errors), known
            )
        return Figures(
            overall=noised.rounded(overall, errors),
            by_site={
                name: noised.rounded(one, site_errors.get(name, {}))
                for name, one in by_site.items()
                if not np.isnan(one["score"])
            },
            confusion=None if found is None else np.rint(found.total).astype(np.int64),
            sums=usable,
            site_sums={
                names(view.site): noised.usable(own, task)
                for view, own in zip(self.federation.views, sums, strict=True)
                if view.site is not None and own
            },
            errors=errors,
            site_errors={name: one for name, one in site_errors.items() if one},
            intervals=known,
            failed=attempts.failed,
        )

    def _errors(self, parts: Mapping[str, tuple[Metrics, Mix | None]]) -> dict[str, Errors]:
        """The errors that noise gives the figures of each site."""
        task = self.federation.program.task
        return {
            name: noised.errors(own, task, partial(self.summary, mix=mix))
            for name, (own, mix) in parts.items()
        }

    def _parts(self, sums: Sequence[Metrics]) -> dict[str, tuple[Metrics, Mix | None]]:
        """The sums and the label mix that each site's figures are made from, by name."""
        names = self.federation.partition.name
        if self.site_test in ("label mix", "test part"):
            mixes = {names(site): self.mix(site) for site in self.sites}
            return {name: (sums[0], mix) for name, mix in mixes.items() if mix is not None}
        mixed = self.site_test == "whole test part"
        return {
            names(view.site): (own, self.mix(view.site) if mixed else None)
            for view, own in zip(self.federation.views, sums, strict=True)
            if view.site is not None and own
        }

    def summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        """The task's figures, its headline as `score` too; with `mix` [classes], under these label
        proportions."""
        task = self.federation.program.task
        figures = task.summary(sums, mix)
        return {"score": figures[task.headline], **figures}

    def score(self, sums: Mapping[str, Sum], mix: Mix | None) -> float:
        """The task's headline figure."""
        return self.summary(sums, mix)["score"]

    def view(self, site: int) -> int | None:
        """The number of the view that the figure of `site` is measured on; None: it has none."""
        if self.site_test in ("label mix", "test part"):
            return 0
        owners = [view.site for view in self.federation.views]
        return owners.index(site) if site in owners else None

    def mix_of(self, site: int) -> Mix | None:
        """The label mix that the figure of `site` is weighted by; None: every image counts once."""
        heeded = self.site_test != "own images" and self.federation.program.task.mixes
        return self.mix(site) if heeded else None

    def counts(self, site: int) -> npt.NDArray[np.int64]:
        """How many of the site's training images show each class [classes]."""
        dataset, chosen = self.federation.dataset, self.federation.partition.indices(site)
        return dataset.train.counts(len(dataset.classes), chosen)

    def mix(self, site: int) -> npt.NDArray[np.float64] | None:
        """The site's label proportions [classes]; None if it does not tell them."""
        if self.federation.partition.name(site) in self.federation.dataset.untold:
            return None
        counts = self.counts(site)
        return np.asarray(counts / max(1, counts.sum()))


def _with_noise(
    intervals: Mapping[str, tuple[float, float]],
    figures: Mapping[str, float],
    errors: Mapping[str, float],
) -> dict[str, tuple[float, float]]:
    """The intervals of figures that have these errors besides; within [0, 1], or for agreement
    below chance within [-1, 1]."""
    found = {}
    for name, bounds in intervals.items():
        low, high = widened(figures[name], bounds, errors.get(name, 0.0))
        found[name] = max(-1.0 if bounds[0] < 0 else 0.0, low), min(1.0, high)
    return found


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over measured values; there may be no test image of a site's classes."""
    found = {}
    for key in figures[0]:
        measured = [one[key] for one in figures if not np.isnan(one[key])]
        found[key] = float(np.mean(measured)) if measured else float("nan")
    return found


def _errors_of_means(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The errors of means of figures, whose errors are independent; none if one is not known."""
    keys = [key for key in errors[0] if all(key in one for one in errors)]
    return {key: math.hypot(*(one[key] for one in errors)) / len(errors) for key in keys}
