"""Boxes that are many enough to find the objects, and wide enough to hold those that they find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedsight.core.errors import DataError
from fedsight.core.types import Batch
from fedsight.models.detector import MOST
from fedsight.tasks.covering.base import Covered, Covering
from fedsight.tasks.covering.levels import NEVER, STEPS, Tally, limit, place
from fedsight.tasks.detection.presentation import RIGHT, answer
from fedsight.tasks.presentation import Mark

if TYPE_CHECKING:
    from fedsight.tasks.base import Task

SCORES = 64  # lowest scores of boxes that are told apart for their margins
WIDTHS = 64  # margins, in equal steps up to a whole side of the box


class Objects(Covering):
    """Two losses of each image, from different held-out images.

    `answer`: the share of its objects that no box with a sufficient score finds. A box finds an
    object of its class that it overlaps by half (IoU). Each finds one, the surest box first, so
    boxes with lower scores take no object away. `margins`: of the objects that such boxes find, the
    share that is not all inside its box once each side was moved outwards by a part of the box's
    width or height (one margin for all sides, multiplicative: de Grancey et al. 2022, Andéol et al.
    2023). An object that overlaps by half reaches out by no more than a whole side.

    Images without objects, or of which none is found, have nothing to miss. The size is the number
    of boxes in an image with objects.
    """

    kind: ClassVar[str] = "objects"
    tested: ClassVar[str] = "test images that show objects, of which some are found"
    guarantees: ClassVar[tuple[str, ...]] = ("mixture", "site")
    unnoised: ClassVar[str] = "noise would hide what boxes with margins lose: these are many sums"
    parts: ClassVar[tuple[str, ...]] = ("answer", "margins")

    def groups(self, part: str, classes: int) -> int:
        """All images; of margins, those in which boxes from each of SCORES scores find some."""
        return 1 if part == "answer" else SCORES

    def site_groups(self, part: str) -> int:
        """As many at each site."""
        return self.groups(part, 0)

    def steps(self, part: str) -> int:
        """The margins from a whole side down to nothing."""
        return STEPS if part == "answer" else WIDTHS + 1

    def largest(self, classes: int) -> int:
        """As many boxes as a detector finds in an image."""
        return MOST

    def rounded(self, part: str, level: int) -> int:
        """The scores at which margins are known."""
        return level - level % (STEPS // SCORES) if part == "answer" else level

    def group(self, part: str, levels: Mapping[str, Tensor]) -> int:
        """Margins depend on which boxes are shown."""
        return 0 if part == "answer" else int(levels["answer"][0]) * SCORES // STEPS

    def few(self, units: int, coverage: float, least: int) -> DataError:
        """Half of the images find the scores, and the others the margins."""
        return DataError(
            f"{units} held-out images that show objects, of which some are found, are too few for "
            f"boxes with a coverage of {coverage:g}",
            f"hold out at least {2 * least} of them, half of which are for the margins, with "
            "rounds.validation, or ask for a lower coverage",
        )

    def told(self, levels: Mapping[str, Tensor]) -> dict[str, float]:
        """The lowest score of a box that is shown, and how far its sides are moved."""
        margin = 1 - int(levels["margins"][0]) / WIDTHS
        return {"threshold": limit(int(levels["answer"][0])), "margin": margin}

    def counted(self, part: str, task: Task, model: nn.Module, batch: Batch) -> Tally:
        """Objects that are difficult or in a crowd are not counted."""
        found = Tally.nothing(self.groups(part, 0), self.steps(part))
        rows = model.find(batch.x).float().cpu()  # type: ignore[operator]
        for boxes, truth in zip(rows, batch.y.cpu(), strict=True):
            boxes, truth = boxes[boxes[:, 1] > 0], truth[truth[:, 0] >= 0]
            by = _finders(boxes, truth)
            scores = place(boxes[:, 1])
            if part == "margins":
                _add_margins(found, (boxes, scores), truth, by)
            elif len(truth):
                none = torch.full((len(truth),), NEVER)
                found.add(0, torch.where(by < 0, none, torch.cat([scores, none[:1]])[by]))
                found.add_size(scores)
        return found

    def answers(
        self, task: Task, model: nn.Module, x: Tensor, classes: tuple[str, ...],
        levels: Mapping[str, Tensor],
    ) -> list[Covered]:  # fmt: skip
        """The boxes with a sufficient score. In the details each has its `outer` box, and the `set`
        of classes of all boxes that overlap it by half, the surest first."""
        height, width = x.shape[2:]
        margin = self.told(levels)["margin"]
        rows = model.find(x).float().cpu()  # type: ignore[operator]
        found = []
        for boxes in rows:
            shown = (boxes[:, 1] > 0) & (place(boxes[:, 1]) >= levels["answer"][0])
            boxes = boxes[shown]
            outer = widened(boxes[:, 2:], margin, (width, height)).tolist()
            plain, near = answer(boxes.tolist(), classes), _overlaps(boxes[:, 2:], boxes[:, 2:])
            details = [
                {**one, "outer": sides, "set": _names(boxes[others, 0], classes)}
                for one, sides, others in zip(
                    plain.details["boxes"], outer, near >= RIGHT, strict=True
                )
            ]
            marks = [Mark((a, b, c, d), "") for a, b, c, d in outer]
            whole = replace(plain, details={"boxes": details}, marks=(*plain.marks, *marks))
            found.append(Covered(whole, tuple(_names(boxes[:, 0], classes))))
        return found


def widened(boxes: Tensor, margin: float, frame: tuple[int, int]) -> Tensor:
    """The boxes [n, 4] with each side moved outwards by `margin` of its width or height, within a
    frame (width, height)."""
    sides = (boxes[:, 2:] - boxes[:, :2]) * margin
    outer = torch.cat([boxes[:, :2] - sides, boxes[:, 2:] + sides], dim=1)
    return torch.minimum(outer.clamp(min=0), torch.tensor([*frame, *frame]))


def _names(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(classes[int(label)] for label in labels.tolist()))


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    found: Tensor = box_iou(boxes, others)
    return found


def _finders(boxes: Tensor, truth: Tensor) -> Tensor:
    """Which of the boxes [n, 6], the surest first, finds each object [m, 5] (-1: none): [m]."""
    by = torch.full((len(truth),), -1)
    if not (len(boxes) and len(truth)):
        return by
    overlap = _overlaps(boxes[:, 2:], truth[:, 1:])
    overlap[boxes[:, :1].long() != truth[:, 0].long()] = 0
    for at in boxes[:, 1].argsort(descending=True, stable=True).tolist():
        best, to = overlap[at].masked_fill(by >= 0, 0).max(0)
        if float(best) >= RIGHT:
            by[to] = at
    return by


def _add_margins(found: Tally, known: tuple[Tensor, Tensor], truth: Tensor, by: Tensor) -> None:
    """Count one image, for each of the scores that boxes may have to reach."""
    boxes, scores = known
    objects, boxes, scores = truth[by >= 0, 1:], boxes[by[by >= 0], 2:], scores[by[by >= 0]]
    if not len(objects):
        return
    sides = (boxes[:, 2:] - boxes[:, :2]).double()
    out = torch.cat([boxes[:, :2] - objects[:, :2], objects[:, 2:] - boxes[:, 2:]], 1).double()
    needed = (out / sides.repeat(1, 2)).amax(1).clamp(0, 1)
    places = WIDTHS - (needed * WIDTHS).ceil().to(torch.int64)
    for group in range(int(scores.max()) * SCORES // STEPS + 1):
        found.add(group, places[scores >= group * STEPS // SCORES])
