"""Masks that are larger than the most probable one, so that few pixels of an object are missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.types import Batch
from fedsight.tasks.covering.base import Covered, Covering
from fedsight.tasks.covering.levels import Tally, place, shared_limit

if TYPE_CHECKING:
    from fedsight.tasks.base import Task

IGNORED = 255


class Masks(Covering):
    """Of each image with a foreground: the share of its foreground pixels that are missed, because
    the probability of their class is too low. A pixel may be marked as of several classes.

    By class, the share of that class's pixels. Pixels without a label are not counted, and images
    that show no foreground have nothing to miss. The size is the share of pixels that are marked.
    """

    kind: ClassVar[str] = "masks"
    tested: ClassVar[str] = "test images that show a foreground, like the site's own"
    least_class: ClassVar[int] = 1  # the background is not marked

    def counted(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """Groups are all of the foreground, and each class; the background has no pixels."""
        shares = task.predict(model, batch.x).cpu()
        truths = batch.y.cpu().long()
        found = Tally.nothing(1 + shares.shape[1])
        for share, truth in zip(shares, truths, strict=True):
            known, there = truth != IGNORED, (truth != IGNORED) & (truth > 0)
            if not bool(there.any()):
                continue
            places, labels = place(share[1:]), truth[there]
            own = places[:, there].gather(0, labels[None] - 1).squeeze(0)
            found.add(0, own)
            for label in labels.unique().tolist():
                found.add(1 + label, own[labels == label])
            found.add_size(places.amax(0)[known], int(known.sum()))
        return found

    def few(self, units: int, coverage: float, least: int) -> DataError:
        """Images without a foreground do not count."""
        return DataError(
            f"{units} held-out images that show a foreground are too few for masks with a coverage "
            f"of {coverage:g}",
            f"hold out at least {least} of them, with rounds.validation, or ask for a lower "
            "coverage",
        )

    def told(self, levels: Mapping[str, Tensor]) -> dict[str, float]:
        """The lowest probability for which a pixel is marked, if it is the same for all classes."""
        return shared_limit(levels["answer"])

    def answers(
        self, task: Task, model: nn.Module, x: Tensor, classes: tuple[str, ...],
        levels: Mapping[str, Tensor],
    ) -> list[Covered]:  # fmt: skip
        """The task's answers, with the larger `mask` bool [classes, h, w], and its share of the
        image, class by class, as `marked` in the details; the background is not marked."""
        found, shown = [], task.answers(model, x, classes)
        for share, answer in zip(task.predict(model, x).cpu(), shown, strict=True):
            mask = place(share) >= levels["answer"][:, None, None]
            mask[0] = False
            parts = mask.double().mean((1, 2))
            order = parts.argsort(descending=True, stable=True).tolist()
            marked = {classes[at]: float(parts[at]) for at in order if parts[at] > 0}
            details = {**answer.details, "marked": marked}
            found.append(Covered(replace(answer, details=details, mask=mask), tuple(marked)))
        return found
