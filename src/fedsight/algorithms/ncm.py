"""Class means on frozen features: the smallest sums that make a head, after one round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fedsight.algorithms.base import Mean, State, algorithms
from fedsight.algorithms.closed_form import ClosedForm, by_class, with_one
from fedsight.core.threads import one_thread
from fedsight.core.types import Batch, PartSpec, PartSpecs
from fedsight.models.base import Network
from fedsight.models.features import linear_head


@algorithms.add("ncm", paper="Legate et al. 2023 (FedNCM)")
class NearestClassMean(ClosedForm):
    """The weight of each class is the direction of its images' mean features; biases are zero.

    A site sends a number for each feature and class. An image is of the class whose mean has the
    smallest angle with its features. A class without images has the weight zero.
    """

    contrasts: ClassVar[bool] = False  # a class's mean is of its own images alone

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """`cross`, the sum of the levels of each class and its number of images [d + 1, classes];
        with `clip` without the numbers [d, classes]."""
        rows = linear_head(network).in_features + (not self.clip)
        return {"cross": PartSpec((rows, classes), torch.int64, bound=images * self.top)}

    @property
    def units(self) -> Mapping[str, float]:
        """An image changes one column, by its levels, which are not longer than `top`."""
        return {"cross": float(self.top)} if self.clip else {}

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The sums over the site's images."""
        (spec,) = self.integer_parts(network, classes, 0).values()
        found = torch.zeros(spec.shape, dtype=torch.int64)
        for levels, labels in self.levels(network, batches):
            rows = levels if self.clip else with_one(levels)
            found += by_class(rows, labels, classes)
        return {"cross": found}

    def is_possible(self, integers: Mapping[str, Tensor], images: int) -> bool:
        """Whether so many images have such sums; with `clip` they may be noised, and anything."""
        cross = integers["cross"]
        if self.clip:
            return True
        sums, labels = cross[:-1], cross[-1]
        inside = bool((sums >= 0).all()) and bool((sums <= self.top * labels).all())
        return inside and int(labels.sum()) <= images

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The head's weight, then its bias."""
        whole = self.sums(mean)
        sums = whole["cross"].double()
        with one_thread():
            if self.clip:
                means = sums
            else:
                step = (self.high - self.low) / self.top
                means = sums[:-1] * step + self.low * sums[-1]
            lengths = means.norm(dim=0).clamp(min=1e-12)
            weight = (means / lengths).T
        head = torch.cat([weight.reshape(-1), weight.new_zeros(len(weight))])
        return head.float(), whole
