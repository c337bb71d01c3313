"""Closed-form heads: exactly the head of all images pooled, after one round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, Phase, State, algorithms
from fedsight.algorithms.closed_form import are_sums, solve, symmetric, triangle
from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.core.types import Batch, Memory, PartSpec, PartSpecs, Payload
from fedsight.models.base import Network
from fedsight.models.features import features, linear_head

if TYPE_CHECKING:
    from fedsight.program.program import Program


@algorithms.add("ridge", paper="Fanì et al. 2024 (Fed3R), equations 4 to 6")
class Ridge(Algorithm):
    """The head is ridge regression on the features of a frozen network, solved from exact sums.

    Features become whole numbers before they are multiplied, so the sums, and with them the head,
    have the same bits however the images are divided among sites, masked or not.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    of_features: ClassVar[bool] = True

    low: float = 0.0  # features below count as this
    high: float = 6.0  # and those above as this: the range after ReLU6
    bits: int = Field(12, ge=2, le=16)  # of a feature
    # of the penalty, in units of the features' mean variance; 0: chosen by cross-validation
    strength: float = Field(0.0, ge=0)

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """All but the head is frozen."""
        return kind if name in network.head else Kind.FROZEN

    def phases(self, epochs: int) -> list[Phase]:
        """None: no gradient is computed."""
        return []

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """`gram`, the upper triangle of X'X, and `cross`, X'Y [d + 1, classes]."""
        side, top = linear_head(network).in_features + 1, (1 << self.bits) - 1
        return {
            "gram": PartSpec((side * (side + 1) // 2,), torch.int64, bound=images * top * top),
            "cross": PartSpec((side, classes), torch.int64, bound=images * top),
        }

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The sums over the site's images."""
        found = {
            part: torch.zeros(spec.shape, dtype=torch.int64)
            for part, spec in self.integer_parts(network, classes, 0).items()
        }
        step = (self.high - self.low) / ((1 << self.bits) - 1)
        for x, y in features(network, batches):
            levels = ((x.double().clamp(self.low, self.high) - self.low) / step).round()
            found["gram"] += triangle(levels)
            whole = torch.cat([levels, levels.new_ones(len(levels), 1)], dim=1).to(torch.int64)
            found["cross"].T.index_add_(0, y, whole)
        return found

    def is_possible(self, integers: Mapping[str, Tensor], images: int) -> bool:
        """Whether they are sums of products of features within their range, and of labels."""
        cross = integers["cross"]
        gram = symmetric(integers["gram"].reshape(-1), len(cross))
        return are_sums(gram, cross, images, (1 << self.bits) - 1)

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """Nothing but the sums travels."""
        return {}, {}

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The head's weight, then its bias, in the units of the features."""
        cross = mean.integers["cross"]
        gram = symmetric(mean.integers["gram"], len(cross))
        weight, bias = solve(gram, cross, self.strength or None)
        scale = ((1 << self.bits) - 1) / (self.high - self.low)
        bias -= weight.sum(1) * self.low * scale
        return torch.cat([(weight * scale).reshape(-1), bias]).float(), dict(mean.integers)

    @property
    def closing(self) -> Algorithm:
        """The head of a network that has been trained."""
        return _Closing(**dict(self))

    @property
    def baseline(self) -> Algorithm:
        """The same sums, of other images."""
        return self

    def check(self, program: Program) -> list[Problem]:
        """What the sums are not made for."""
        found = []
        if not self.low < self.high:
            cause = f"the range of the features is empty: {self.low} to {self.high}"
            found.append(Problem("algorithm.high", cause, "set it above algorithm.low"))
        if not program.task.scored:
            cause = (
                f"ridge solves for a score of each class, and '{program.task.registered}' has none"
            )
            found.append(Problem("algorithm.name", cause, "choose another algorithm"))
        if program.rounds.rounds != 1:
            cause = "ridge has its result after one round, and later ones would repeat it"
            found.append(Problem("rounds.rounds", cause, "set it to 1"))
        if program.train.augment:
            cause = "ridge sees each image once, as it is, and augmentation would be without effect"
            found.append(Problem("train.augment", cause, "leave it out"))
        ignored = {
            "train.sampling": program.train.sampling != "shuffled",
            "task.class_weights": program.task.table().get("class_weights") is not None,
        }
        cause = "every image counts once in ridge's sums, so this would be without effect"
        found += [Problem(key, cause, "leave it out") for key, is_set in ignored.items() if is_set]
        return found


class _Closing(Ridge):
    """The same sums, of features that training has changed: what it trained travels with the order,
    as running statistics do, and is not averaged."""

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """The head is solved for; the rest of what learns is sent to the sites."""
        return Kind.BUFFER if kind == Kind.SHARED and name not in network.head else kind
