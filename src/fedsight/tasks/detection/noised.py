"""The few numbers of detections that are noised, and average precision's histograms from them.

For each class: detections that are wrong at IoU 0.50, by score; detections that are right, by score
and by the strictest of four overlaps at which they are; and the number of objects. Sizes of objects
are not told apart. An image's numbers are scaled down together, so recall stays what it is.
"""

from __future__ import annotations

import numpy as np

from fedsight.tasks.detection.precision import BINS, OVERLAPS, Floats, place
from fedsight.tasks.repair import coarse, fine, projected

MOST = 3.0  # norm of an image's numbers
MOST_LOSS = 10.0
# where the wider bins of scores begin: at 0, 0.1, 0.2 and so on
EDGES = (0, *place(np.arange(1, 10) / 10).tolist())
SCORES = len(EDGES)
LEVELS = (0, 3, 6, 9)  # places in OVERLAPS: IoU 0.50, 0.65, 0.80, 0.95
AREAS = 4
# Detections with the lowest scores are many and change little, so they use less of the bound.
WEIGHTS = np.array([0.05, 0.25, *[1.0] * (SCORES - 2)])


def condensed(counts: Floats, objects: Floats) -> Floats:
    """[classes, 5 * SCORES + 1] from the sums of `precision.histograms`."""
    found = coarse(counts[:, 0], EDGES)  # [classes, overlaps, 2, SCORES]
    right, wrong = found[:, LEVELS, 0], found[:, 0, 1] * WEIGHTS
    strictest = right - np.concatenate([right[:, 1:], np.zeros_like(right[:, :1])], axis=1)
    rows = [strictest.reshape(len(found), -1), wrong, objects[:, :1]]
    return np.concatenate(rows, axis=1)


def repaired(found: Floats, deviation: float) -> tuple[Floats, Floats]:
    """The histograms and the numbers of objects; `deviation` is that of the noise in `found`."""
    counts = np.zeros((len(found), AREAS, len(OVERLAPS), 2, BINS))
    objects = np.zeros((len(found), AREAS))
    places = np.arange(len(OVERLAPS))
    for label, row in enumerate(found):
        if row[-1] < 2 * deviation:
            continue
        objects[label, 0] = row[-1]
        strictest = row[: len(LEVELS) * SCORES]
        at_all = float(np.clip(strictest.sum(), 0.0, row[-1]))
        levels = projected(strictest, at_all).reshape(len(LEVELS), SCORES)
        right = np.cumsum(levels[::-1], axis=0)[::-1]  # at each level
        wrong = row[len(LEVELS) * SCORES : -1]
        wrong = projected(wrong, max(float(wrong.sum()), 0.0)) / WEIGHTS
        each = np.stack([np.interp(places, LEVELS, one) for one in right.T], axis=1)
        counts[label, 0, :, 0] = fine(each, EDGES, BINS)
        # Who is right at a lower overlap only is wrong at a higher one.
        counts[label, 0, :, 1] = fine(wrong + right[0] - each, EDGES, BINS)
    return counts, objects
