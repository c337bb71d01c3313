"""Thresholds of likeness that let few pairs of different people pass as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.rng import generator
from fedsight.core.types import Batch
from fedsight.models.embedding import Embedding
from fedsight.tasks.covering.base import Covered, Covering
from fedsight.tasks.covering.levels import STEPS, Tally

if TYPE_CHECKING:
    from fedsight.tasks.base import Task

ABOVE = 1e-9  # so that a likeness at the edge of a level is not accepted
NOBODY = 2.0  # a threshold that no cosine reaches


def places(cosines: Tensor) -> Tensor:
    """The places [...] of comparisons: level k accepts those with an angle below k / STEPS of 180
    degrees. What is not a number counts as accepted."""
    angles = torch.acos(cosines.double().clamp(-1, 1))
    found = (angles / math.pi * STEPS).floor().clamp(0, STEPS - 1)
    return found.nan_to_num(nan=0).to(torch.int64)


def threshold(level: int) -> float:
    """The least cosine that a level accepts; level 0 accepts nobody."""
    return NOBODY if level <= 0 else math.cos(math.pi * level / STEPS) + ABOVE


class Pairs(Covering):
    """Of each pair of people: the share that is accepted of comparisons of an image of one with an
    image of the other.

    Comparisons share people and are not exchangeable, and nor are pairs that share a person. So
    each person is at one site, and the people of a site are put into pairs at random, each into
    one: these are independent, and what is guaranteed is said of two new people at one site. The
    size is the share of comparisons of a person with himself that are accepted.
    """

    kind: ClassVar[str] = "pairs"
    guarantees: ClassVar[tuple[str, ...]] = ("mixture", "site")
    unnoised: ClassVar[str] = (
        "one image may put all people of its site into other pairs, which no noise hides"
    )
    classless: ClassVar[bool] = True

    def groups(self, part: str, classes: int) -> int:
        """All pairs; people are no classes that come again."""
        return 1

    def few(self, units: int, coverage: float, least: int) -> DataError:
        """A pair takes two people."""
        return DataError(
            f"{units} pairs of people that nobody trained on are too few for a false accept rate "
            f"of {1 - coverage:g}",
            f"hold out at least {2 * least} people besides those that are tested, or ask for a "
            "higher rate",
        )

    def more(self, least: int) -> str:
        """A pair takes two people."""
        return f"have test images of at least {2 * least} people, or ask for a higher rate"

    def also(self, task: Task) -> Mapping[str, float]:
        """The task's false accept rates."""
        return {f"{far:g}": 1 - far for far in getattr(task, "fars", ())}

    def told(self, levels: Mapping[str, Tensor]) -> dict[str, float]:
        """The least cosine that is accepted."""
        return {"threshold": threshold(int(levels["answer"][0]))}

    def counted(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """The images of one site; of an odd number of people one is left out."""
        assert isinstance(model, Embedding)  # checked by the task
        return paired(model.embed(batch.x).cpu(), batch.y.cpu())

    def shown(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """Nobody is left out: figures are over all people, and less these sums they would be those
        of one. Of an odd number three are compared with one another, which on average shows what a
        pair does."""
        assert isinstance(model, Embedding)
        return paired(model.embed(batch.x).cpu(), batch.y.cpu(), everybody=True)

    def answers(
        self, task: Task, model: nn.Module, x: Tensor, classes: tuple[str, ...],
        levels: Mapping[str, Tensor],
    ) -> list[Covered]:  # fmt: skip
        """Raises ModelError, as the task does: people are in a gallery, not in the model."""
        return [Covered(one, ()) for one in task.answers(model, x, classes)]


def paired(vectors: Tensor, people: Tensor, everybody: bool = False) -> Tally:
    """What levels accept of the pairs of people [n] with these unit vectors [n, d]; `everybody`:
    the last three of an odd number are compared with one another."""
    names, found = people.unique(), Tally.nothing(1)
    order = torch.randperm(len(names), generator=generator(0, "pairs of people"))
    own = [vectors[people == name] for name in names[order].tolist()]
    units: list[tuple[Tensor, ...]] = [*zip(own[::2], own[1::2], strict=False)]
    if everybody and len(own) % 2 and units:
        units[-1] = (*units[-1], own[-1])
    for unit in units:
        each = [places(one @ other.T).flatten() for one, other in combinations(unit, 2)]
        found.add(0, torch.cat(each))
        genuine = torch.cat([places((one @ one.T)[*_upper(len(one))]) for one in unit])
        if len(genuine):  # a person of one image is not compared with himself
            found.add_size(genuine, len(genuine), lost=True)
    return found


def _upper(images: int) -> Tensor:
    return torch.triu_indices(images, images, 1)
