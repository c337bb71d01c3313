"""Heads with a closed form: what they have in common, and ridge regression solved from exact sums.

Sites send sums over their images, of whole numbers, so the sums are exact however they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from fedsight.algorithms.base import Algorithm, Local, Mean, Phase
from fedsight.algorithms.earlier import Change, changed, data_problems, problems
from fedsight.core.errors import Problem, SiteError
from fedsight.core.layout import Kind, Layout
from fedsight.core.rng import generator
from fedsight.core.threads import one_thread
from fedsight.core.types import Batch, Memory, Payload
from fedsight.models.base import Network
from fedsight.models.features import features

if TYPE_CHECKING:
    from fedsight.data.base import Dataset
    from fedsight.program.program import Program

CERTAIN = 0.99  # the probability that an output of 1 stands for
ROUNDING = 1e-9  # of a matrix's trace: more than float64 rounds it by
STRENGTHS = torch.logspace(-7, 1, 33, dtype=torch.float64)  # that "auto" chooses from


class ClosedForm(Algorithm):
    """A head that is computed from sums over the images of features of a frozen network.

    Features become whole numbers before anything is added, so the sums, and with them the head,
    have the same bits however the images are divided among sites, masked or not.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    of_features: ClassVar[bool] = True

    low: float = 0.0  # features below count as this
    high: float = 6.0  # and those above as this: the range after ReLU6
    bits: int = Field(12, ge=2, le=16)  # of a feature
    # largest root mean square of an image's features: longer ones are scaled down to it, which
    # bounds what one image changes, as differential privacy needs; low and high are then without
    # effect; 0: none
    clip: float = Field(0.0, ge=0)
    # checkpoint.safetensors of a finished run over other sites with the same settings, to whose
    # sums those of this run are added, or from which they are taken away
    earlier: Path | None = Field(None, strict=False)
    earlier_sha256: str | None = None  # of that file, or its first 8 or more hex digits
    change: Change = "join"  # what the sites of this run do: "join" or "leave" the earlier

    # what has changed the network, which the sites do not have yet
    _trained: Algorithm | None = PrivateAttr(default=None)

    def kind(self, name: str, kind: Kind, network: Network) -> Kind:
        """All but the head is frozen; what was trained before is sent to the sites, unchanged, as
        running statistics are."""
        if name in network.head:
            return kind
        if self._trained is not None:
            return Kind.BUFFER if kind == Kind.SHARED else kind
        return Kind.FROZEN

    def moves(self, layout: Layout) -> frozenset[str]:
        """What training has moved is sent to the sites, too, and does not move."""
        return frozenset() if self._trained is None else self._trained.moves(layout)

    def phases(self, epochs: int) -> list[Phase]:
        """None: no gradient is computed."""
        return []

    def finish(self, vector: Tensor, local: Local) -> tuple[Payload, Memory]:
        """Nothing but the sums travels."""
        return {}, {}

    @property
    def remembers(self) -> bool:
        """Sites keep nothing."""
        return False

    def check_data(self, dataset: Dataset) -> list[Problem]:
        """Images that are prepared in another way than those of the earlier run."""
        return list(data_problems(self, dataset))

    def fresh(self) -> ClosedForm:
        """The same sums, of whatever run."""
        return self.model_copy(update={"earlier": None, "earlier_sha256": None})

    def closing(self, trained: Algorithm) -> Algorithm:
        """The same sums, of features that training has changed."""
        found = self.fresh()
        found._trained = trained
        return found

    @property
    def baseline(self) -> ClosedForm:
        """The same sums, of other images."""
        return self.fresh()

    @property
    def top(self) -> int:
        """The largest level; with `clip`, the largest length of an image's levels."""
        return 1 << self.bits if self.clip else (1 << self.bits) - 1

    def levels(self, network: Network, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """The features as whole numbers, float64 [b, d], and the targets [b].

        Raises SiteError for features that are not finite, unless `clip` makes them zeros.
        """
        step = (self.high - self.low) / self.top
        for x, y in features(network, batches):
            if self.clip:
                yield shortened(x, self.clip, self.top), y
            elif not bool(x.isfinite().all()):
                raise SiteError(
                    "the network gives features that are not finite",
                    "look at the images and at the weights of the network",
                )
            else:
                yield ((x.double().clamp(self.low, self.high) - self.low) / step).round(), y

    def sums(self, mean: Mean) -> dict[str, Tensor]:
        """The sums that the head is computed from: the round's, or the earlier run's changed by
        them. Raises SiteError and ModelError as `earlier.changed` does."""
        if self.earlier is None:
            return dict(mean.integers)
        sha256 = self.earlier_sha256 or ""
        return changed(mean.integers, self.earlier, sha256, self.change)

    def check(self, program: Program) -> list[Problem]:
        """What the sums are not made for."""
        found, name = list(problems(self, program)), self.registered
        if not self.low < self.high:
            cause = f"the range of the features is empty: {self.low} to {self.high}"
            found.append(Problem("algorithm.high", cause, "set it above algorithm.low"))
        if self.low >= 0 and not self.clip and program.model.signed:
            cause = (
                "random features that are products have either sign, and those below "
                f"{self.low:g} would count as that"
            )
            cure = "set algorithm.low = -6 (their mean square is 1), or model.lift_by = 'relu'"
            found.append(Problem("algorithm.low", cause, cure))
        if not program.task.scored:
            cause = (
                f"{name} solves for a score of each class, and '{program.task.registered}' has none"
            )
            found.append(Problem("algorithm.name", cause, "choose another algorithm"))
        if program.rounds.rounds != 1:
            cause = f"{name} has its result after one round, and later ones would repeat it"
            found.append(Problem("rounds.rounds", cause, "set it to 1"))
        if program.train.augment:
            cause = (
                f"{name} sees each image once, as it is, and augmentation would be without effect"
            )
            found.append(Problem("train.augment", cause, "leave it out"))
        ignored = {
            "train.steps": program.train.steps is not None,
            "train.sampling": program.train.sampling != "shuffled",
            "task.class_weights": program.task.table().get("class_weights") is not None,
            "task.calibration": bool(program.task.table().get("calibration")),
        }
        cause = f"every image counts once in the sums of {name}, so this would be without effect"
        found += [Problem(key, cause, "leave it out") for key, is_set in ignored.items() if is_set]
        return found


def shortened(x: Tensor, clip: float, top: int) -> Tensor:
    """Features [n, d] as whole numbers, float64, whose length is at most `top` exactly.

    A root mean square of `clip`, and any above it, becomes the length `top`. Values are rounded
    towards zero, which makes none longer; to nearest, the length could be top + sqrt(d) / 2. What
    float64 adds to the sum of the squares is less than d top^2 2^-51, so less than 1 while d is
    below 2^19 with a top of 2^16; and that sum is a whole number, so it is at most top^2. An image
    whose features are not finite counts as zeros.
    """
    x = x.double()
    x = torch.where(x.isfinite().all(1, keepdim=True), x, 0.0)
    most = clip * math.sqrt(x.shape[1])
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=most)
    return torch.trunc(x / lengths * top)


def held_out(levels: Tensor, share: float) -> Tensor:
    """Which images [n] are among the `share` that is held out: bool.

    It follows from an image's own levels [n, d] alone, so it is the same at whatever site it is,
    and equal images are all on one side.
    """
    draws = generator(0, "held out")
    factors = torch.randint(-(1 << 62), 1 << 62, (levels.shape[1],), generator=draws) * 2 + 1
    hashed = (levels.to(torch.int64) * factors).sum(1)  # modulo 2^64
    return ((hashed >> 40) & 0xFFFFFF) < share * (1 << 24)


def by_class(levels: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The sum of the levels [n, d] of each class, int64 [d, classes]."""
    found = torch.zeros(levels.shape[1], classes, dtype=torch.int64)
    found.T.index_add_(0, labels, levels.to(torch.int64))
    return found


def with_one(levels: Tensor) -> Tensor:
    """[n, d + 1]: `levels` [n, d] and a constant feature 1."""
    return torch.cat([levels, levels.new_ones(len(levels), 1)], dim=1)


def triangle(levels: Tensor) -> Tensor:
    """The upper triangle of X'X as int64 [d (d + 1) / 2], row after row; X is `levels` [n, d].

    `levels` are whole numbers in float64; their products are exact while the sum of n of them is
    below 2^53.
    """
    return upper((levels.T @ levels).to(torch.int64))


def upper(square: Tensor) -> Tensor:
    """The upper triangle of [m, m], row after row."""
    rows, columns = torch.triu_indices(*square.shape, device=square.device)
    return square[rows, columns]


def symmetric(values: Tensor, side: int) -> Tensor:
    """The symmetric matrix [side, side] whose upper triangle is `values`."""
    square = values.new_zeros(side, side)
    rows, columns = torch.triu_indices(side, side)
    square[rows, columns] = values
    square[columns, rows] = values
    return square


def are_sums(gram: Tensor, cross: Tensor, images: int, top: int) -> bool:
    """Whether `gram` and `cross`, as `solve` takes them, are those of at most so many images.

    Each image has one label, and features that are whole numbers from 0 to `top`. What is checked
    follows from that: the sums of the features, by class and over all, agree, no product exceeds
    what its factors allow, and X'X is positive semidefinite.
    """
    count, sums, labels = int(gram[-1, -1]), gram[-1, :-1], cross[-1]
    if not (0 <= count <= images and bool((cross >= 0).all()) and bool((gram >= 0).all())):
        return False
    if bool((labels > count).any()) or int(labels.sum()) != count:
        return False
    if bool((cross[:-1] > top * labels).any()) or bool((cross[:-1].sum(1) != sums).any()):
        return False
    if bool((gram[:-1, :-1] > top * torch.minimum(sums, sums[:, None])).any()):
        return False
    if bool((gram.diagonal()[:-1] < sums).any()):  # the square of a whole number is no less
        return False
    square = gram.double()
    square.diagonal().add_(ROUNDING * float(square.diagonal().sum()) + ROUNDING)
    return int(torch.linalg.cholesky_ex(square).info) == 0


def solve(
    gram: Tensor, cross: Tensor, strengths: Sequence[float] | Tensor = STRENGTHS
) -> tuple[Tensor, Tensor]:
    """Weights [c, d] and biases [c] of the logits of c classes, float64.

    `gram` is X'X as int64 [d + 1, d + 1], whose last row and column are those of the constant 1;
    `cross` is X'Y as int64 [d + 1, c], with Y one column for each class, 1 where an image has it.

    The regression (Hoerl and Kennard 1970) does not penalise the bias. Its strength is in units of
    the features' mean variance: that of `strengths` with the least generalised cross-validation
    (Golub, Heath and Wahba 1979), which the sums suffice for. Its outputs estimate probabilities;
    as logits they are scaled so that the softmax of an output of exactly 1 for one class and 0 for
    the others is CERTAIN. (The variance of the residuals, which would follow if they were normal,
    makes the head several times too sure.)

    It computes on one thread, so that equal sums give equal bits. Raises SiteError if there is no
    image, or no feature varies.
    """
    with one_thread():
        regression = Regression(gram, cross)
        weight, bias = regression.head(regression.cross_validated(strengths))
        scale = logit_scale(len(bias))
        return weight * scale, bias * scale


class Regression:
    """Ridge regressions of all strengths on the same sums, whose matrix is decomposed once."""

    def __init__(self, gram: Tensor, cross: Tensor) -> None:
        sums, totals = gram.double(), cross.double()
        self.images = sums[-1, -1]
        if not self.images > 0:
            raise SiteError("no site has sent sums of any image", "look at the sites' logs")
        self.means, self.shares = sums[-1, :-1] / self.images, totals[-1] / self.images
        spread = sums[:-1, :-1] - torch.outer(self.means, self.means) * self.images
        joint = totals[:-1] - torch.outer(self.means, self.shares) * self.images
        values, self.vectors = torch.linalg.eigh(spread)
        self.values = values.clamp(min=0)
        self.varied = float((totals[-1] - self.shares * totals[-1]).sum())
        if not self.values[-1] > 0:
            raise SiteError(
                "the head has no closed form: all images have equal features",
                "choose another network or other images, or set algorithm.low and algorithm.high "
                "to the range of the features",
            )
        self.rotated = self.vectors.T @ joint

    def head(self, strength: float) -> tuple[Tensor, Tensor]:
        """Weights [c, d] and biases [c] of the outputs, which estimate probabilities."""
        damped = 1 / (self.values + strength * self.values.mean())
        weight = (self.vectors @ (self.rotated * damped[:, None])).T
        return weight, self.shares - weight @ self.means

    def cross_validated(self, strengths: Sequence[float] | Tensor) -> float:
        """The one of `strengths` with the least generalised cross-validation."""
        known = torch.as_tensor(strengths, dtype=torch.float64)
        values = self.values
        damped = 1 / (values + known[:, None] * values.mean())  # [s, d]
        explained = ((2 * damped - values * damped**2) * self.rotated.square().sum(1)).sum(1)
        residual = (self.varied - explained).clamp(min=0)  # [s]
        freedom = 1 - ((values * damped).sum(1) + 1) / self.images
        valid = torch.where(freedom > 0, residual / freedom**2, torch.inf)
        return float(known[int(valid.argmin())])


def best(weights: Sequence[Tensor], gram: Tensor, cross: Tensor) -> int:
    """Which of the `weights`, each [c, d], has the least squared error on images with these sums.

    The error of outputs W x is |Y|^2 - 2 <W, Y'X> + <W X'X, W>, whose first term they all have.
    """
    with one_thread():
        sums, totals = gram.double(), cross.double().T
        errors = [float(((w @ sums) * w).sum() - 2 * (w * totals).sum()) for w in weights]
    return errors.index(min(errors))


def logit_scale(classes: int) -> float:
    """What outputs of the regression are multiplied by to be logits of so many classes."""
    return math.log(CERTAIN / (1 - CERTAIN) * max(1, classes - 1))
