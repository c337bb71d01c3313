"""What algorithms have in common whose sites tell what their networks think of public images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Mean
from fedsight.core.errors import Problem
from fedsight.core.types import Batch, PartSpec, PartSpecs
from fedsight.models.base import Network

if TYPE_CHECKING:
    from fedsight.program.program import Program

ONE = 1 << 16  # what a score of 1 is as a whole number
LARGEST = 256  # scores beyond count as this


class PublicScores(Algorithm):
    """Base: after local training a site sends the scores of the public images, which are its
    network's logits, as whole numbers. Their sum over sites is exact, and can be masked."""

    on_public: ClassVar[bool] = True
    counts_after: ClassVar[bool] = True
    contrasts: ClassVar[bool] = False

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """`scores` of the public images [public images, classes], and `sites`: 1."""
        return {
            "scores": PartSpec((images, classes), torch.int64, bound=LARGEST * ONE),
            "sites": PartSpec((1,), torch.int64, bound=1),
        }

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The network's logits times `ONE`, rounded; 0 for one that is not a number: that noise or
        images spoilt a network must not show by a reply that is refused."""
        found = []
        for batch in batches:
            scores = network.module(batch.x).double().cpu().nan_to_num(0.0)
            scores = scores.clamp(-LARGEST, LARGEST)
            found.append((scores * ONE).round().long())
        return {"scores": torch.cat(found), "sites": torch.ones(1, dtype=torch.int64)}

    def is_possible(self, integers: Mapping[str, Tensor], images: int) -> bool:
        """Whether the sites that have so many images can have these scores."""
        sites = int(integers["sites"])
        within = bool((integers["scores"].abs() <= max(sites, 0) * LARGEST * ONE).all())
        return 0 <= sites <= images and within

    def check(self, program: Program) -> list[Problem]:
        """The network must score each class."""
        if program.task.scored:
            return []
        cause = f"the task '{program.task.registered}' does not score each class of an image"
        return [Problem("algorithm.name", cause, "choose another algorithm, or 'classify'")]


def mean_scores(mean: Mean) -> Tensor | None:
    """The mean over the round's sites, each counted once, float32 [public images, classes]; None:
    none of them told any."""
    sites = int(mean.integers["sites"])
    return (mean.integers["scores"].double() / (sites * ONE)).float() if sites else None
