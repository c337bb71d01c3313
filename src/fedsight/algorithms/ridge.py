"""Ridge regression on frozen features: exactly the head of all images pooled, after one round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsight.algorithms import noised_form
from fedsight.algorithms.base import Mean, State, algorithms
from fedsight.algorithms.closed_form import (
    STRENGTHS,
    ClosedForm,
    Regression,
    are_sums,
    best,
    by_class,
    held_out,
    solve,
    symmetric,
    triangle,
    with_one,
)
from fedsight.core.errors import Problem, SiteError
from fedsight.core.types import Batch, PartSpec, PartSpecs
from fedsight.models.base import Network
from fedsight.models.features import linear_head

if TYPE_CHECKING:
    from fedsight.program.program import Program

HELD = "held."  # how the names of the sums over images that are held out begin

Strengths = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)]
Head = tuple[Tensor, Tensor]  # weights [c, d], biases [c]


@algorithms.add("ridge", paper="Fanì et al. 2024 (Fed3R), equations 4 to 6")
class Ridge(ClosedForm):
    """The head is ridge regression on the features of a frozen network, solved from exact sums."""

    # of the penalty, in units of the features' mean variance. Of several the best is chosen, by the
    # images that are held out, or else by cross-validation; empty: of 33 from 1e-7 to 10, or, where
    # the sums are noised, as the noise needs
    strengths: Strengths = ()
    # share of the images by whose squared error under a head of the others the strength is chosen;
    # the final head is of all images
    held_out: float = Field(0.0, ge=0, le=0.5)

    def integer_parts(self, network: Network, classes: int, images: int) -> PartSpecs:
        """`gram`, the upper triangle of X'X, and `cross`, X'Y [d + 1, classes], with a constant
        feature; with `clip` `squares`, `products` and `cross` [d, classes] without one. The same
        again of the images that are held out."""
        wide, top = linear_head(network).in_features, self.top
        shapes: dict[str, tuple[int, ...]]
        if self.clip:
            shapes = {"squares": (wide,), "products": (wide * (wide - 1) // 2,)}
        else:
            wide += 1
            shapes = {"gram": (wide * (wide + 1) // 2,)}
        specs = {
            part: PartSpec(shape, torch.int64, bound=images * top * top)
            for part, shape in shapes.items()
        }
        specs["cross"] = PartSpec((wide, classes), torch.int64, bound=images * top)
        return {f"{group}{part}": spec for group in self._groups for part, spec in specs.items()}

    @property
    def units(self) -> Mapping[str, float]:
        """See `noised_form`; an image is held out or not, and changes one group of sums."""
        units = noised_form.units(self.top) if self.clip else {}
        return {f"{group}{part}": unit for group in self._groups for part, unit in units.items()}

    @property
    def _groups(self) -> tuple[str, ...]:
        return ("", HELD) if self.held_out else ("",)

    def statistics(
        self, network: Network, classes: int, batches: Iterable[Batch]
    ) -> Mapping[str, Tensor]:
        """The sums over the site's images."""
        found = {
            part: torch.zeros(spec.shape, dtype=torch.int64)
            for part, spec in self.integer_parts(network, classes, 0).items()
        }
        for levels, labels in self.levels(network, batches):
            aside = held_out(levels, self.held_out)
            for group in self._groups:
                own = aside if group else ~aside
                for part, value in self._sums(levels[own], labels[own], classes).items():
                    found[f"{group}{part}"] += value
        return found

    def _sums(self, levels: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
        if self.clip:
            found = noised_form.bounded_sums(levels)
        else:
            levels = with_one(levels)
            found = {"gram": triangle(levels)}
        return {**found, "cross": by_class(levels, labels, classes)}

    def is_possible(self, integers: Mapping[str, Tensor], images: int) -> bool:
        """Whether they are sums of products of features within their range, and of labels.

        With `clip` they may be noised, and so anything.
        """
        if self.clip:
            return True
        groups = [(integers[f"{one}gram"], integers[f"{one}cross"]) for one in self._groups]
        counted = sum(int(cross[-1].sum()) for _, cross in groups)
        return counted <= images and all(
            are_sums(symmetric(gram.reshape(-1), len(cross)), cross, images, self.top)
            for gram, cross in groups
        )

    def step(self, vector: Tensor, state: State, mean: Mean, round: int) -> tuple[Tensor, State]:
        """The head's weight, then its bias, in the units of the features."""
        sums = self.sums(mean)
        used = {part: value for part, value in sums.items() if not part.startswith(HELD)}
        aside = {part: sums[f"{HELD}{part}"] for part in used} if self.held_out else {}
        whole = {part: value + aside.get(part, 0) for part, value in used.items()}
        if self.clip:
            weight, bias = self._of_noised(used, aside, whole, mean.deviation)
            scale = self.top / (self.clip * math.sqrt(weight.shape[1]))
        else:
            weight, bias = self._of_exact(used, aside, whole)
            scale = self.top / (self.high - self.low)
            bias = bias - weight.sum(1) * self.low * scale
        return torch.cat([(weight * scale).reshape(-1), bias]).float(), sums

    def _of_exact(self, used: State, aside: State, whole: State) -> Head:
        strengths = self.strengths or STRENGTHS.tolist()
        if aside:
            if not bool(aside["cross"][-1].any()):
                raise SiteError(
                    "none of the images is held out, so nothing chooses among the strengths",
                    "raise algorithm.held_out, or leave it out for cross-validation",
                )
            regression = Regression(_gram(used), used["cross"])
            heads = [torch.cat([w, b[:, None]], 1) for w, b in map(regression.head, strengths)]
            strengths = [strengths[best(heads, _gram(aside), aside["cross"])]]
        return solve(_gram(whole), whole["cross"], strengths)

    def _of_noised(self, used: State, aside: State, whole: State, deviation: float) -> Head:
        def fitted(sums: State, strength: float | None) -> Tensor:
            gram = noised_form.matrix(sums)
            added = noised_form.penalty(gram, strength, deviation * self.top**2)
            return noised_form.fitted(gram, sums["cross"], added)

        strengths: Sequence[float | None] = self.strengths or (None,)
        if aside and len(strengths) > 1:
            heads = [fitted(used, one) for one in strengths]
            cross = noised_form.centred(aside["cross"])
            strengths = [strengths[best(heads, noised_form.matrix(aside), cross)]]
        return noised_form.as_logits(fitted(whole, strengths[0]))

    def check(self, program: Program) -> list[Problem]:
        """What the sums are not made for, and strengths that nothing could choose from."""
        found = super().check(program)
        if self.clip and len(self.strengths) > 1 and not self.held_out:
            cause = "with algorithm.clip only images that are held out choose among strengths"
            cure = "set algorithm.held_out = 0.1, or write one strength or none"
            found.append(Problem("algorithm.strengths", cause, cure))
        if self.held_out and (len(self.strengths) == 1 or (self.clip and not self.strengths)):
            cause = "images are held out to choose among several strengths, and there are none"
            cure = "write several in algorithm.strengths, or leave held_out out"
            found.append(Problem("algorithm.held_out", cause, cure))
        if self.held_out and program.privacy.protects:
            cause = (
                "the noise of differential privacy makes errors on images that are held out useless"
            )
            cure = "leave held_out out: without strengths the penalty is what the noise needs"
            found.append(Problem("algorithm.held_out", cause, cure))
        return found


def _gram(sums: State) -> Tensor:
    return symmetric(sums["gram"], len(sums["cross"]))
