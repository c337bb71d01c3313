"""Prediction sets of one run: what sites have counted, and which classes a set holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsight.core.errors import DataError
from fedsight.evaluation.trust.conformal import (
    BINS,
    draws,
    histogram,
    scores,
    smallest,
    threshold,
)
from fedsight.program.views import LISTED

MOST_IMAGES = 2**32  # in a bin
MIXTURE, SITE, CLASS = "mixture", "site", "class"  # for whom a guarantee holds


@dataclass(frozen=True)
class Sets:
    """The scores of the true class of held-out inputs, as histograms: of the images of each class
    int64 [classes, BINS], and of each site [BINS] by its name. Where images stand for groups,
    `whole` [BINS] is the histogram of all groups."""

    method: str
    classes: Tensor
    sites: Mapping[str, Tensor]
    whole: Tensor | None = None

    @classmethod
    def counted(cls, method: str, probabilities: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """The histograms int64 [classes, BINS] of one site's images, by class."""
        each = scores(method, probabilities, draws(logits))
        truth = each.gather(1, labels[:, None]).squeeze(1)
        found = torch.zeros(probabilities.shape[1], BINS, dtype=torch.int64)
        for label in labels.unique().tolist():
            found[label] = histogram(truth[labels == label])
        return found

    @property
    def all(self) -> Tensor:
        """The histogram [BINS] of all sites and classes together."""
        return self.classes.sum(0) if self.whole is None else self.whole

    def limits(self, guarantee: str, coverage: float, site: str | None = None) -> Tensor:
        """The largest score [classes] with which each class is in a set; infinite for a class with
        too few images.

        Raises DataError where there are too few for any, with the smallest number that is enough,
        and for a site that is not known.
        """
        counted = "inputs" if self.whole is None else "groups"
        if guarantee == CLASS:
            each = [threshold(counts, coverage) for counts in self.classes]
            if any(one is not None for one in each):
                return torch.tensor([torch.inf if one is None else one for one in each])
            raise DataError(
                f"{int(self.classes.sum(1).max())} held-out {counted} of each class, at most, are "
                f"too few for sets with a coverage of {coverage:g}",
                f"hold out at least {smallest(coverage)} of each class, with rounds.validation, or "
                "ask for a lower coverage",
            )
        if guarantee == SITE and not self.sites:
            raise DataError(
                "no site has held-out inputs of its own",
                "hold some out, by rounds.validation, or set trust.guarantee = 'mixture'",
            )
        if guarantee == SITE:
            if site is None or site not in self.sites:
                raise DataError(
                    "the guarantee of these sets is each site's own, and no site with held-out "
                    "inputs is named",
                    f"name one of: {', '.join([*self.sites][:10])}",
                )
            counts = self.sites[site]
        else:
            counts = self.all
        found = threshold(counts, coverage)
        if found is None:
            raise DataError(
                f"{int(counts.sum())} held-out {counted} are too few for sets with a coverage of "
                f"{coverage:g}",
                f"hold out at least {smallest(coverage)}, with rounds.validation, or ask for a "
                "lower coverage",
            )
        return torch.full((len(self.classes),), found)

    def inside(self, limits: Tensor, probabilities: Tensor, logits: Tensor) -> Tensor:
        """Which classes the set of each image holds: bool [n, classes]."""
        return self.scores(probabilities, logits) <= limits

    def scores(self, probabilities: Tensor, logits: Tensor) -> Tensor:
        """The scores of the classes [n, classes] of images."""
        return scores(self.method, probabilities, draws(logits))

    def plain(self) -> dict[str, Any]:
        """The histograms as values for JSON: pairs of a bin and a count that is not zero."""
        whole = {} if self.whole is None else {"whole": _pairs(self.whole)}
        return {
            **whole,
            "method": self.method,
            "classes": [_pairs(counts) for counts in self.classes],
            "sites": {name: _pairs(counts) for name, counts in self.sites.items()},
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any], classes: int) -> Sets:
        """The histograms that `plain` describes, of a model of so many `classes`.

        Raises KeyError, TypeError, ValueError or IndexError for what `plain` does not make. A file
        may come from anywhere, so it does not decide how much memory is taken.
        """
        if len(plain["classes"]) != classes or len(plain["sites"]) > LISTED:
            raise ValueError("it is not of as many classes and sites as the run")
        by_class = torch.stack([_counts(pairs) for pairs in plain["classes"]])
        sites = {name: _counts(pairs) for name, pairs in plain["sites"].items()}
        whole = _counts(plain["whole"]) if "whole" in plain else None
        return cls(str(plain["method"]), by_class, sites, whole)


def _pairs(counts: Tensor) -> list[list[int]]:
    places = torch.nonzero(counts).squeeze(1).tolist()
    return [[place, int(counts[place])] for place in places]


def _counts(pairs: Any) -> Tensor:
    found = torch.zeros(BINS, dtype=torch.int64)
    for place, count in pairs:
        if not (type(place) is type(count) is int and place >= 0 and 0 <= count < MOST_IMAGES):
            raise ValueError("a histogram has counts that are not whole numbers")
        found[place] = count
    return found
