"""Sets of labels that are larger than the likely ones, so that few labels are missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedsight.core.types import Batch
from fedsight.tasks.covering.base import Covered, Covering
from fedsight.tasks.covering.levels import Tally, place, shared_limit

if TYPE_CHECKING:
    from fedsight.tasks.base import Task


class Labels(Covering):
    """Of each image with a label: the share of its labels that the set lacks, because their
    probability is too low. By class, whether the set of an image with that label lacks it. The size
    is the number of labels in a set."""

    kind: ClassVar[str] = "labels"
    tested: ClassVar[str] = "test images with a label, like the site's own"

    def largest(self, classes: int) -> int:
        """All labels."""
        return classes

    def counted(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """Images without a label have none to miss."""
        places, truths = place(task.predict(model, batch.x).cpu()), batch.y.cpu() > 0.5
        found = Tally.nothing(1 + places.shape[1])
        for own, truth in zip(places, truths, strict=True):
            if not bool(truth.any()):
                continue
            found.add(0, own[truth])
            for label in torch.nonzero(truth).flatten().tolist():
                found.add(1 + label, own[label : label + 1])
            found.add_size(own)
        return found

    def told(self, levels: Mapping[str, Tensor]) -> dict[str, float]:
        """The lowest probability of a label in a set, if it is the same for all."""
        return shared_limit(levels["answer"])

    def answers(
        self, task: Task, model: nn.Module, x: Tensor, classes: tuple[str, ...],
        levels: Mapping[str, Tensor],
    ) -> list[Covered]:  # fmt: skip
        """The task's answers, and the labels of the sets, the most probable first."""
        found, shown = [], task.answers(model, x, classes)
        for share, answer in zip(task.predict(model, x).cpu(), shown, strict=True):
            inside = place(share) >= levels["answer"]
            order = share.argsort(descending=True, stable=True).tolist()
            found.append(Covered(answer, tuple(classes[at] for at in order if bool(inside[at]))))
        return found
