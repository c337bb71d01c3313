"""FedProto: sites with networks of their own agree on what the images of each class look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Local, Mean, State, algorithms
from fedsight.algorithms.kept_networks import KeptNetworks
from fedsight.core.errors import Problem
from fedsight.core.types import Batch, PartSpec, PartSpecs
from fedsight.models.base import Network
from fedsight.models.features import features, linear_head

if TYPE_CHECKING:
    from fedsight.program.program import Program

BITS = 16  # after the binary point of a feature in a sum
LARGEST = 256.0  # features beyond count as this


@algorithms.add("fedproto", paper="Tan et al. 2022 (FedProto), equations 3, 6 and 7")
class FedProto(KeptNetworks):
    """Sites exchange prototypes (the mean features of each class) instead of networks.

    Each site trains a network of its own, whose features are drawn to the common prototypes. After
    that it sends the sum of the features of each class, as whole numbers, and how many images that
    are. The common prototype of a class is the mean over all images of the round's sites; the
    paper's equation 6 would also divide it by the number of sites, which its authors' code does
    not. Images are recognised by the site's network.
    """

    beside: ClassVar[str] = "prototypes"  # [classes, f]
    of_features: ClassVar[bool] = True

    lam: float = Field(1.0, ge=0)  # lambda: how strongly features are drawn to the prototypes

    def equip(self, network: Network, classes: int, public: int) -> Network:
        """The network, and beside its layers the common prototypes."""
        return self.with_beside(network, (classes, linear_head(network).in_features))

    def init(self, vector: Tensor) -> State:
        """No class has a prototype."""
        return {"known": torch.zeros_like(vector)}

    def shared(self, state: State) -> Mapping[str, Tensor]:
        """Which values of the prototypes are known: 1, or 0."""
        return state

    def penalty(self, z: Tensor, features: Callable[[Tensor], Tensor], local: Local) -> Tensor:
        """lambda times the mean squared difference between the features of an image and the
        prototype of its class, over the images whose class has one (the authors' form of equation
        7)."""
        assert local.labels is not None  # set with each batch
        shape = -1, z.shape[1]
        known = local.shared["known"].view(shape)[local.labels]
        distance = (z - local.start.view(shape)[local.labels]).square()
        return self.lam * (known * distance).mean()

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """`sums`, of the features of each class and of its images [classes, f + 1]."""
        shape = classes, linear_head(network).in_features + 1
        bound = images * round(LARGEST * 2**BITS)
        return {"sums": PartSpec(shape, torch.int64, bound=bound)}

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The sums over the site's images (equation 3, before it is divided)."""
        (spec,) = self.integer_parts(network, classes, 0).values()
        found = torch.zeros(spec.shape, dtype=torch.int64)
        for seen, labels in features(network, batches):
            known = seen.double().nan_to_num(0.0)  # NaN is no whole number
            levels = (known.clamp(-LARGEST, LARGEST) * 2**BITS).round().long()
            one = torch.ones(len(levels), 1, dtype=torch.int64)
            found.index_add_(0, labels, torch.cat([levels, one], dim=1))
        return {"sums": found}

    def is_possible(self, integers: Mapping[str, Tensor], images: int) -> bool:
        """Whether so many images can have these sums."""
        counts, sums = integers["sums"][:, -1], integers["sums"][:, :-1]
        most = counts[:, None] * round(LARGEST * 2**BITS)
        counted = bool((counts >= 0).all()) and int(counts.sum()) <= images
        return counted and bool(((sums <= most) & (sums >= -most)).all())

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The mean features of each class that the round's sites have; others stay (equation 6)."""
        sums, counts = mean.integers["sums"][:, :-1], mean.integers["sums"][:, -1:]
        found = sums.double() / (counts.clamp(min=1).double() * 2**BITS)
        seen = (counts > 0).expand_as(found).reshape(-1)
        new = torch.where(seen, found.reshape(-1), vector.double()).float()
        return new, {"known": torch.where(seen, 1.0, state["known"])}

    def check(self, program: Program) -> list[Problem]:
        """Each image must have one class."""
        if not program.task.classed:
            cause = f"the task '{program.task.registered}' does not give each image one class"
            return [Problem("algorithm.name", cause, "choose another algorithm, or 'classify'")]
        if program.train.mixes:
            cause = "a mixed image has no class whose prototype it could be drawn to"
            return [Problem("train.augment", cause, "leave mixup and cutmix out")]
        return []
