"""Detections as answers, marks on images, and curves and tables for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsight.data.detection.boxes import regions
from fedsight.tasks.detection.precision import Floats, average_precision, outcomes, recall_curve
from fedsight.tasks.presentation import Answer, Curve, Mark, Sample, Table

RIGHT = 0.5  # minimum IoU of a box with its object
MOST_LINES = 10
Found = Sequence[Sequence[float]]  # rows (class, score, left, top, right, bottom)


def above_score(found: Tensor, least: float) -> list[Found]:
    """The rows of each image of [b, most, 6] with a score of at least `least`."""
    return [rows[(rows[:, 1] > 0) & (rows[:, 1] >= least)].tolist() for rows in found.float().cpu()]


def answer(found: Found, classes: tuple[str, ...]) -> Answer:
    """The objects found in one image, as text, as plain values and as marks."""
    labels = [classes[int(row[0])] for row in found]
    details = {
        "boxes": [
            {"label": label, "score": row[1], "box": list(row[2:])}
            for label, row in zip(labels, found, strict=True)
        ]
    }
    sure = max((row[1] for row in found), default=0.0)
    return Answer(_counted(labels), sure, details, _found_marks(found, classes))


def sample(at: int, found: Found, truth: Found, classes: tuple[str, ...]) -> Sample:
    """Image `at` of a batch; `truth` are target rows (class, left, top, right, bottom).

    Right if every object is found and nothing else is.
    """
    objects = [row for row in truth if row[0] >= 0]
    counted = _counted_of(found, truth)
    matched = _matched(counted, objects)
    marks = [
        Mark(_box(row[2:]), classes[int(row[0])], "false" if to is None else "found", row[1])
        for row, to in zip(counted, matched, strict=True)
    ]
    marks += [
        Mark(_box(row[1:]), classes[int(row[0])], "missed")
        for number, row in enumerate(objects)
        if number not in matched
    ]
    return Sample(
        positions=(at,),
        truth=_counted([classes[int(row[0])] for row in objects]),
        predicted=_counted([classes[int(row[0])] for row in found]),
        probability=min((row[1] for row in found), default=0.0),
        right=all(mark.kind == "found" for mark in marks),
        marks=tuple(marks),
    )


def _counted_of(found: Found, truth: Found) -> Found:
    """The detections without those that fit a difficult object or lie in a crowd of the class."""
    from torchvision.ops import box_iou

    if not found:
        return found
    targets = torch.tensor([list(row) for row in truth])[None]
    uncounted, labels, crowds = (one[0] for one in regions(targets))
    if not bool(uncounted.any()):
        return found
    rows, others = torch.tensor([list(row) for row in found]), targets[0, uncounted, 1:]
    boxes = rows[:, 2:]
    overlap = box_iou(boxes, others)
    common = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    common = (common - torch.maximum(boxes[:, None, :2], others[:, :2])).clamp(min=0).prod(2)
    inside = common / (boxes[:, 2:] - boxes[:, :2]).prod(1, keepdim=True)
    fits = torch.where(crowds[uncounted], inside, overlap) >= RIGHT
    fits &= rows[:, :1].long() == labels[uncounted]
    return [row for row, left_out in zip(found, fits.any(1).tolist(), strict=True) if not left_out]


def _counted(labels: Sequence[str]) -> str:
    counts = Counter(labels).most_common()
    return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts) or "nothing"


def _found_marks(found: Found, classes: tuple[str, ...]) -> tuple[Mark, ...]:
    return tuple(
        Mark((row[2], row[3], row[4], row[5]), f"{classes[int(row[0])]} {row[1]:.0%}")
        for row in found
    )


def _box(sides: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = sides
    return left, top, right, bottom


def _matched(found: Found, objects: Found) -> list[int | None]:
    """The number of the object that each detection is of, None if of no object.

    The surest detection comes first and takes the object of its class that it overlaps most.
    """
    from torchvision.ops import box_iou

    matched: list[int | None] = [None] * len(found)
    if not found or not objects:
        return matched
    mine, theirs = torch.tensor([list(row) for row in found]), torch.tensor(objects)
    overlaps = box_iou(mine[:, 2:], theirs[:, 1:]) * (mine[:, :1] == theirs[:, 0])
    for at in torch.argsort(mine[:, 1], descending=True, stable=True).tolist():
        best = int(overlaps[at].argmax())
        if float(overlaps[at, best]) >= RIGHT:
            matched[at] = best
            overlaps[:, best] = 0.0
    return matched


def curves(counts: Floats, objects: Floats, classes: tuple[str, ...]) -> list[Curve]:
    """Precision over recall at IoU 0.50 for each class, up to ten."""
    seen = [number for number in range(len(classes)) if objects[number, 0]][:MOST_LINES]
    lines = {
        classes[number]: recall_curve(counts[number, 0, 0], objects[number, 0]) for number in seen
    }
    lines = {name: line for name, line in lines.items() if line}
    return [Curve("Precision over recall, IoU 0.50", "recall", "precision", lines)] if lines else []


def tables(counts: Floats, objects: Floats, classes: tuple[str, ...], score: float) -> list[Table]:
    """Objects found and missed and false detections with at least `score`, at IoU 0.50; and average
    precision, over IoU 0.50 to 0.95 and at 0.50: of each class."""
    return [_outcomes(counts, objects, classes, score), _average(counts, objects, classes)]


def _outcomes(counts: Floats, objects: Floats, classes: tuple[str, ...], score: float) -> Table:
    right, wrong = outcomes(counts, score)
    rows: list[tuple[str | float | None, ...]] = []
    for number, name in enumerate(classes):
        found, false, there = right[number], wrong[number], float(objects[number, 0])
        shares = (_share(found, found + false), _share(found, there))
        f1 = _share(2 * found, found + false + there)
        rows.append((name, found, there - found, false, *shares, f1))
    columns = ("Class", "Found", "Missed", "False", "Precision", "Recall", "F1")
    return Table(f"Found, missed and false by class, at a score of {score:g}", columns, rows)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _average(counts: Floats, objects: Floats, classes: tuple[str, ...]) -> Table:
    found = average_precision(counts, objects)
    rows = [
        (
            name,
            float(objects[number, 0]),
            _known(found[number, 0].mean()),
            _known(found[number, 0, 0]),
        )
        for number, name in enumerate(classes)
    ]
    columns = ("Class", "Objects", "mAP", "AP, IoU 0.50")
    return Table("Average precision by class", columns, rows)


def site_tables(
    sites: Mapping[str, tuple[Floats, Floats]], classes: tuple[str, ...]
) -> list[Table]:
    """Average precision over IoU 0.50 to 0.95 of each class (a row) at each site (a column)."""
    if len(sites) < 2:
        return []
    found = [average_precision(*sums)[:, 0].mean(1) for sums in sites.values()]
    rows = [(name, *(_known(one[number]) for one in found)) for number, name in enumerate(classes)]
    return [Table("mAP by class at each site", ("Class", *sites), rows)]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
