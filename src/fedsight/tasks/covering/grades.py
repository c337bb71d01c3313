"""Intervals of grades that hold the true one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedsight.core.types import Batch
from fedsight.tasks.covering.base import Covered, Covering
from fedsight.tasks.covering.levels import STEPS, Tally, place

if TYPE_CHECKING:
    from fedsight.tasks.base import Task


class Grades(Covering):
    """Whether the interval of an image lacks its grade: a loss of 0 or 1, so that this is split
    conformal prediction (Vovk et al. 2005).

    A grade is in it while both the grades up to it and those from it on are likely enough: what
    central intervals of a distribution are. The median grade is in all of them. Where grades have
    levels of their own, all grades between two that are in are in as well: what is counted is then
    no less than what intervals lose. The size is the number of grades.
    """

    kind: ClassVar[str] = "grades"
    mixes: ClassVar[bool] = True
    abstains: ClassVar[bool] = True

    def largest(self, classes: int) -> int:
        """All grades."""
        return classes

    def counted(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """Groups are all images, and those of each grade."""
        places, truths = _places(task.predict(model, batch.x).cpu()), batch.y.cpu().tolist()
        found = Tally.nothing(1 + places.shape[1])
        for own, truth in zip(places, truths, strict=True):
            for group in (0, 1 + truth):
                found.add(group, own[truth : truth + 1])
            found.add_size(own)
        return found

    def answers(
        self, task: Task, model: nn.Module, x: Tensor, classes: tuple[str, ...],
        levels: Mapping[str, Tensor],
    ) -> list[Covered]:  # fmt: skip
        """The task's answers, and the grades of the intervals in their order."""
        found, shown = [], task.answers(model, x, classes)
        for own, answer in zip(_places(task.predict(model, x).cpu()), shown, strict=True):
            inside = torch.nonzero(own >= levels["answer"]).flatten().tolist()
            span = classes[inside[0] : inside[-1] + 1] if inside else ()
            found.append(Covered(answer, tuple(span)))
        return found


def _places(shares: Tensor) -> Tensor:
    """The places [n, grades] of grades with the probabilities [n, grades]; the median's is the
    last, so that every level keeps it."""
    shares = shares.double()
    upto = shares.cumsum(1)
    onward = shares.sum(1, keepdim=True) - upto + shares
    least = torch.minimum(upto, onward)
    found = place((2 * least).clamp(max=1))
    median = least.argmax(1, keepdim=True)
    return found.scatter_(1, median, torch.full_like(median, STEPS - 1))
