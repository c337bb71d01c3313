"""Computes figures from the views' metric sums: overall, per site, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsight.core.types import Metrics, Sum, add_metrics
from fedsight.program.federation import Federation, listed


@dataclass(frozen=True)
class Figures:
    """The figures of one model, or of one federation of personal models.

    Every set of figures has a `score`, the task's headline. A site without any test image of its
    classes has no figures and is not in `by_site`. `sums` are totals over all views; `site_sums`
    are each site's, where sites have their own views. All are empty if nothing was measured.
    """

    overall: Mapping[str, float]
    by_site: Mapping[str, Mapping[str, float]]
    confusion: npt.NDArray[np.int64] | None
    sums: Mapping[str, Sum]
    site_sums: Mapping[str, Mapping[str, Sum]]


class Evaluator:
    """Computes figures by one rule for a whole comparison; `site_test` names the rule.

    - `own images`: the source assigns each test image to a site. Overall counts every image once.
    - `whole test part`: sites see shifted images or have personal models, so each is tested on
      all test images as it sees them. A site's figure weights each class by its share of the
      site's own images; the overall figure is the mean over sites.
    - `label mix`: one model, one test part. Overall counts every image once; a site's figure
      weights each class by its share of the site's own images.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.sites = listed(federation.partition)
        owners = [view.site for view in federation.views]
        if federation.dataset.test.sites is not None:
            self.site_test = "own images"
        else:
            self.site_test = "label mix" if owners == [None] else "whole test part"

    def figures(self, sums: Sequence[Metrics], only: int | None = None) -> Figures:
        """Figures from the sums of the federation's views.

        A view without sums was not measured, because its site did not answer or released no
        figures; it is left out.
        `only` is the number of the site that the model belongs to, if it belongs to one: under
        `whole test part` the overall figure is then that site's.
        """
        views, summary = self.federation.views, self._summary
        if not any(sums):  # every site withholds its figures
            return Figures({}, {}, None, {}, {})
        names = self.federation.partition.name
        everything = add_metrics(list(sums))
        pairs = zip(views, sums, strict=True)
        site_sums = {names(v.site): s for v, s in pairs if v.site is not None and s}
        if self.site_test == "own images":
            by_site = {name: summary(own) for name, own in site_sums.items()}
            overall = summary(everything)
        elif self.site_test == "label mix":
            mixes = {names(site): self.mix(site) for site in self.sites}
            by_site = {
                name: summary(sums[0], mix) for name, mix in mixes.items() if mix is not None
            }
            overall = summary(everything)
        else:
            by_site = {
                names(view.site): summary(own, self.mix(view.site))
                for view, own in zip(views, sums, strict=True)
                if own and view.site is not None
            }
            counted = list(by_site.values()) if only is None else [by_site[names(only)]]
            overall = {key: _mean([one[key] for one in counted]) for key in counted[0]}
        by_site = {name: one for name, one in by_site.items() if not np.isnan(one["score"])}
        found = everything.get("confusion")
        confusion = None if found is None else np.rint(found.total).astype(np.int64)
        return Figures(overall, by_site, confusion, everything, site_sums)

    def _summary(
        self, sums: Mapping[str, Sum], mix: npt.NDArray[np.float64] | None = None
    ) -> dict[str, float]:
        task = self.federation.program.task
        figures = task.summary(sums, mix)
        return {"score": figures[task.headline], **figures}

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


def _mean(values: Sequence[float]) -> float:
    """The mean over measured values; there may be no test image of a site's classes."""
    measured = [value for value in values if not np.isnan(value)]
    return float(np.mean(measured)) if measured else float("nan")


def worst(by_site: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """The site with the lowest score; None if no site has figures."""
    if not by_site:
        return None
    name = min(by_site, key=lambda site: by_site[site]["score"])
    return {"name": name, "score": by_site[name]["score"]}
