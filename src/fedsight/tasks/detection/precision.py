"""COCO's mean average precision from histograms of scores, which add over images and sites.

pycocotools matches detections with objects in each image (Lin et al., Microsoft COCO, 2014). Each
image gives histograms of the scores of true and false detections. These add over batches and sites,
and the precision-recall curve is computed from their sum.

Scores bunch near 0 and near 1, so bins are equal in x / (4 + |x|) of the logit x of a score: near 0
and 1 they are narrow, and at one half about 1/600 wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsight.data.detection.boxes import labelled, present, regions

BINS = 1000  # of scores from 0 to 1
_BEND, _LAST = 4.0, 20.0  # logits up to which bins are nearly equal, and where they end
_SCALE = (_BEND + _LAST) / _LAST
OVERLAPS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())  # minimum IoU of a match
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO averages precision over these
Floats = npt.NDArray[np.float64]


def place(scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The bin of each score from 0 to 1; rising with it."""
    given = np.clip(np.asarray(scores, np.float64), 1e-300, 1 - 1e-16)
    logits = np.clip(np.log(given) - np.log1p(-given), -_LAST, _LAST)
    bent = _SCALE * logits / (_BEND + np.abs(logits))  # -1 to 1
    return np.asarray(np.clip((bent + 1) * (BINS / 2), 0, BINS - 1), np.int64)


def middles() -> Floats:
    """The score in the middle of each bin [BINS]."""
    bent = ((np.arange(BINS) + 0.5) / (BINS / 2) - 1) / _SCALE
    logits = _BEND * bent / (1 - np.abs(bent))
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def areas(small: float, medium: float) -> list[list[float]]:
    """COCO's area ranges in square pixels, for sides up to `small` and `medium` pixels."""
    return [[0, 1e10], [0, small**2], [small**2, medium**2], [medium**2, 1e10]]


def histograms(
    found: Tensor, targets: Tensor, classes: int, ranges: Sequence[Sequence[float]]
) -> tuple[Floats, Floats]:
    """Detections counted by score [classes, areas, overlaps, 2 (true, false), BINS], and objects
    [classes, areas].

    `found` [b, most, 6] are rows (class, score, left, top, right, bottom); rows of score 0 are
    padding. `targets` [b, most, 5] are as in `fedsight.data.detection.boxes`. A class that was not
    labelled in an image is not evaluated there. A detection that fits a difficult object, or lies
    in a crowd of its class, is not counted, as in Pascal VOC and COCO.
    """
    found, targets = found.cpu(), targets.cpu()
    counts = np.zeros((classes, len(ranges), len(OVERLAPS), 2, BINS))
    objects = np.zeros((classes, len(ranges)))
    evaluated, boxes = labelled(targets, classes), present(targets)
    uncounted, names, crowds = regions(targets)
    for image in range(len(found)):
        theirs = found[image][found[image, :, 1] > 0].double().numpy()
        ours = targets[image][boxes[image]].double().numpy()
        for label in np.flatnonzero(evaluated[image].numpy()):
            truth = ours[ours[:, 0] == label, 1:]
            mine = theirs[theirs[:, 0] == label, 1:]
            if len(truth) or len(mine):
                apart = uncounted[image] & (names[image] == label)
                others = targets[image][apart, 1:].double().numpy()
                left_out = _Uncounted(others, crowds[image][apart].numpy())
                _count(mine, truth, left_out, ranges, counts[label], objects[label])
    return counts, objects


class _Uncounted(NamedTuple):
    """Boxes [n, 4] of one class in which detections are not counted, and which are crowds [n]."""

    boxes: Floats
    crowds: npt.NDArray[np.bool_]


def _count(
    found: Floats,
    truth: Floats,
    left_out: _Uncounted,
    ranges: Sequence[Sequence[float]],
    counts: Floats,
    objects: Floats,
) -> None:
    """Add the results for one class in one image to `counts` and `objects`."""
    evaluator = _evaluator()
    evaluator.params.areaRng = ranges
    ignored = [None] * len(truth) + left_out.crowds.tolist()  # None: an object that is counted
    true = [
        {
            "id": number + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(crowd is True),
            "ignore": int(crowd is not None),
        }
        for number, (box, crowd) in enumerate(
            zip((*_sides(truth), *_sides(left_out.boxes)), ignored, strict=True)
        )
    ]
    evaluator._gts[0, 0] = true
    evaluator._dts[0, 0] = [
        {"id": number + 1, "bbox": box, "area": box[2] * box[3], "score": float(score)}
        for number, (box, score) in enumerate(zip(_sides(found[:, 1:]), found[:, 0], strict=True))
    ]
    evaluator.ious = {(0, 0): evaluator.computeIoU(0, 0)}
    for one in true:  # any number of detections may fit a difficult object (VOC2012 devkit)
        one["iscrowd"] = one["ignore"]
    for number, area in enumerate(ranges):
        result = evaluator.evaluateImg(0, 0, area, evaluator.params.maxDets[-1])
        objects[number] += np.count_nonzero(result["gtIgnore"] == 0)
        scores = np.asarray(result["dtScores"])
        bins = place(scores)
        right, counted = result["dtMatches"] > 0, ~result["dtIgnore"].astype(bool)
        for overlap in range(len(OVERLAPS)):
            for kind, chosen in enumerate((right[overlap], ~right[overlap])):
                np.add.at(counts[number, overlap, kind], bins[chosen & counted[overlap]], 1)


def _sides(boxes: Floats) -> list[list[float]]:
    """(left, top, right, bottom) -> (left, top, width, height)."""
    sides: list[list[float]] = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist()
    return sides


@cache
def _evaluator() -> Any:
    """pycocotools' evaluation, without any images."""
    from pycocotools.cocoeval import COCOeval

    evaluator = COCOeval(iouType="bbox")
    evaluator.params.iouThrs = np.asarray(OVERLAPS)
    evaluator.params.catIds = [0]
    return evaluator


def curves(counts: Floats) -> tuple[Floats, Floats]:
    """True and false detections with at least each bin's score, highest first [..., BINS]."""
    summed = counts[..., ::-1].cumsum(-1)
    return summed[..., 0, :], summed[..., 1, :]


def average_precision(counts: Floats, objects: Floats) -> Floats:
    """Average precision [classes, areas, overlaps] at COCO's 101 recalls; NaN without objects.

    The order within a bin is not known. This is the middle between the worst case and the best, in
    which all right detections of a bin come first; both are `slack` away.
    """
    return _in_order(counts, objects) + slack(counts, objects)


def slack(counts: Floats, objects: Floats) -> Floats:
    """The largest error of `average_precision` due to bins [classes, areas, overlaps]."""
    best = np.zeros((*counts.shape[:-1], 2 * counts.shape[-1]))
    best[..., 0, 1::2] = counts[..., 0, :]  # the higher half of each bin
    best[..., 1, 0::2] = counts[..., 1, :]
    return (_in_order(best, objects) - _in_order(counts, objects)) / 2


def _in_order(counts: Floats, objects: Floats) -> Floats:
    """Average precision where all detections of a bin come at once, right ones last."""
    right, wrong = curves(counts)
    precision = right / np.maximum(right + wrong, 1)
    # Interpolated precision: the maximum over all higher recalls.
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    result = np.full(right.shape[:-1], np.nan)
    for cell in np.ndindex(result.shape):
        if total := objects[cell[:2]]:
            at = np.searchsorted(right[cell] / total, RECALLS, side="left")
            last = right.shape[-1] - 1
            result[cell] = np.where(at <= last, precision[cell][np.minimum(at, last)], 0).mean()
    return result


def f1(counts: Floats, objects: Floats, score: float) -> Floats:
    """F1 [classes, areas] of detections with at least `score`, IoU 0.50; NaN without objects.

    Average precision depends only on the order of the scores. F1 is measured at a fixed score, so
    it also falls when a model becomes less confident.
    """
    right, wrong = counts[:, :, 0, :, _from(score) :].sum(-1).transpose(2, 0, 1)
    return np.where(objects > 0, 2 * right / np.maximum(right + wrong + objects, 1), np.nan)


def outcomes(counts: Floats, score: float) -> tuple[list[float], list[float]]:
    """True and false detections of each class with at least `score`, of any size, IoU 0.50."""
    right, wrong = counts[:, 0, 0, :, _from(score) :].sum(-1).T
    return right.tolist(), wrong.tolist()


def _from(score: float) -> int:
    """The first bin of detections with at least `score`; bins below one half begin at a score."""
    return 0 if score <= 0 else int(place(score))


def recall_curve(counts: Floats, objects: float) -> list[tuple[float, float]]:
    """(recall, precision) for the scores [2, BINS] at which recall changes, rising."""
    right, wrong = curves(counts)
    changed = np.flatnonzero(np.diff(right, prepend=0))
    return [(float(right[i] / objects), float(right[i] / (right[i] + wrong[i]))) for i in changed]


def padded_scores(found: Tensor, classes: int) -> Tensor:
    """The highest score of each class in each image: [b, most, 6] -> [b, classes]."""
    scores = torch.zeros(len(found), classes, device=found.device)
    return scores.scatter_reduce(1, found[:, :, 0].long(), found[:, :, 1].float(), "amax")
