"""Average precision from added histograms equals pycocotools' own, however the images are cut."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from fedsight.data.detection.boxes import Row, crowd, difficult, pack
from fedsight.tasks.detection.precision import (
    areas,
    average_precision,
    f1,
    histograms,
    middles,
    place,
    recall_curve,
    slack,
)

CLASSES, SMALL, MEDIUM = 3, 20.0, 30.0
RANGES = areas(SMALL, MEDIUM)


def scene(seed: int, images: int) -> tuple[Tensor, Tensor]:
    """Detections that are the objects moved a little, some missed, some out of nowhere."""
    rng = np.random.default_rng(seed)
    truth: list[list[Row]] = []
    found = torch.zeros(images, 12, 6)
    for image in range(images):
        rows: list[Row] = []
        answers = []
        for _ in range(rng.integers(0, 6)):
            left, top = rng.uniform(0, 60, 2)
            width, height = rng.uniform(10, 40, 2)
            label = int(rng.integers(CLASSES))
            rows.append((label, left, top, left + width, top + height))
            if rng.random() < 0.8:
                box = np.array(rows[-1][1:]) + rng.normal(0, 2, 4)
                answers.append([label, rng.beta(4, 2), *box])
        for _ in range(rng.integers(0, 4)):
            left, top = rng.uniform(0, 60, 2)
            answers.append([rng.integers(CLASSES), rng.beta(2, 4), left, top, left + 20, top + 20])
        truth.append(rows)
        for number, row in enumerate(answers):
            found[image, number] = torch.tensor(np.array(row, dtype=np.float32))
    return found, pack(truth, [()] * images)


def theirs(found: Tensor, targets: Tensor) -> Any:
    """pycocotools from beginning to end: precision averaged over recalls [overlap, class, area]."""
    annotations, detections = [], []
    for image in range(len(found)):
        for row in targets[image].double().tolist():
            width, height = row[3] - row[1], row[4] - row[2]
            if row[0] >= 0 or width > 0:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": int(row[0] if row[0] >= 0 else -2 - row[0]),
                        "bbox": [row[1], row[2], width, height],
                        "area": width * height,
                        "iscrowd": int(row[0] < 0),
                    }
                )
        for row in found[image].double().tolist():
            if row[1] > 0:
                box = [row[2], row[3], row[4] - row[2], row[5] - row[3]]
                detections.append(
                    {"image_id": image, "category_id": int(row[0]), "bbox": box, "score": row[1]}
                )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(len(found))],
            "categories": [{"id": number} for number in range(CLASSES)],
            "annotations": annotations,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(detections), "bbox")
        judge.params.areaRng = RANGES
        judge.params.areaRngLbl = ["all", "small", "medium", "large"]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][..., -1].mean(axis=1)


def test_it_equals_pycocotools_where_no_two_scores_share_a_bin() -> None:
    found, targets = scene(0, 30)
    found = scored(found, 0)
    ours = average_precision(*histograms(found, targets, CLASSES, RANGES))
    np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs(found, targets), atol=1e-9)


def scored(found: Tensor, seed: int) -> Tensor:
    """The detections with scores of which no two share a bin."""
    sure = found[:, :, 1] > 0
    places = 100 + np.random.default_rng(seed).permutation(800)[: int(sure.sum())]
    scores = middles()[places]
    found[:, :, 1][sure] = torch.from_numpy(scores).float()
    return found


def test_crowds_are_judged_as_pycocotools_judges_them() -> None:
    rng = np.random.default_rng(7)
    found, targets = scene(5, 30)
    found = scored(found, 1)
    truth = [[tuple(row) for row in image.tolist() if row[0] >= 0] for image in targets]
    with_crowds = [[crowd(row) if rng.random() < 0.4 else row for row in rows] for rows in truth]
    turned = pack(with_crowds, [()] * len(truth))
    counts, objects = histograms(found, turned, CLASSES, RANGES)
    ours = average_precision(counts, objects).transpose(2, 0, 1)
    np.testing.assert_allclose(ours, theirs(found, turned), atol=1e-9)
    before = histograms(found, targets, CLASSES, RANGES)
    assert objects[:, 0].sum() < before[1][:, 0].sum()
    assert counts[:, 0].sum() < before[0][:, 0].sum()  # what lies in a crowd counts neither way


def by_the_devkit(found: Tensor, truth: list[list[Row]], hard: list[list[bool]]) -> list[int]:
    """True and false detections and objects as VOCevaldet of the VOC2012 devkit counts them."""
    order = sorted(
        (-float(row[1]), image, row[2:].tolist())
        for image in range(len(found))
        for row in found[image]
        if row[1] > 0
    )
    seen = [[False] * len(rows) for rows in truth]
    right = wrong = 0
    for _, image, box in order:
        best, at = -1.0, -1
        for number, (_, left, top, r, b) in enumerate(truth[image]):
            across = min(r, box[2]) - max(left, box[0])
            down = min(b, box[3]) - max(top, box[1])
            if across > 0 and down > 0:
                both = across * down
                area = (r - left) * (b - top) + (box[2] - box[0]) * (box[3] - box[1])
                if both / (area - both) > best:
                    best, at = both / (area - both), number
        if best >= 0.5:
            if hard[image][at]:
                continue
            right, wrong = right + (not seen[image][at]), wrong + seen[image][at]
            seen[image][at] = True
        else:
            wrong += 1
    return [right, wrong, sum(not one for image in hard for one in image)]


@pytest.mark.parametrize("seed", range(5))
def test_difficult_objects_are_judged_as_the_devkit_of_voc_judges_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth: list[list[Row]] = []
    hard: list[list[bool]] = []
    found = torch.zeros(20, 12, 6)
    for image in range(20):
        rows = [(0.0, 50.0 * n, 10.0, 50.0 * n + 30, 40.0) for n in range(4)]  # apart
        answers = [np.array(row[1:]) + rng.normal(0, 3, 4) for row in rows for _ in range(2)]
        answers += [np.array([0, 60, 20, 90.0]) + rng.normal(0, 3, 4)]
        kept = [box for box in answers if rng.random() < 0.8]
        for number, box in enumerate(kept):
            found[image, number] = torch.tensor([0.0, 0.5, *box])
        truth.append(rows)
        hard.append((rng.random(4) < 0.5).tolist())
    found = scored(found, seed)
    rows = [
        [difficult(row) if one else row for row, one in zip(own, marks, strict=True)]
        for own, marks in zip(truth, hard, strict=True)
    ]
    counts, objects = histograms(found, pack(rows, [()] * 20), 1, RANGES)
    ours = [*counts[0, 0, 0].sum(1).astype(int).tolist(), int(objects[0, 0])]
    assert ours == by_the_devkit(found, truth, hard)


def test_bins_move_the_mean_by_no_more_than_their_width() -> None:
    found, targets = scene(1, 30)
    ours = average_precision(*histograms(found, targets, CLASSES, RANGES))
    assert ours[:, 0].mean() == pytest.approx(theirs(found, targets)[..., 0].mean(), abs=1e-3)


def test_counts_add_over_images() -> None:
    found, targets = scene(2, 20)
    whole = histograms(found, targets, CLASSES, RANGES)
    parts = [histograms(found[i : i + 7], targets[i : i + 7], CLASSES, RANGES) for i in (0, 7, 14)]
    for number in range(2):
        np.testing.assert_array_equal(whole[number], sum(part[number] for part in parts))


def test_a_class_that_was_not_labelled_in_an_image_is_not_judged_there() -> None:
    found, _ = scene(3, 1)
    found[0, 0] = torch.tensor([0.0, 0.9, 5, 5, 25, 25])
    hidden = pack([[(1.0, 0, 0, 9, 9)]], [[0]])
    counts, objects = histograms(found, hidden, CLASSES, RANGES)
    assert counts[0].sum() == 0
    assert objects[:, 0].tolist() == [0, 1, 0]


def test_perfect_answers_score_one_and_classes_without_objects_nothing() -> None:
    _, targets = scene(4, 10)
    right = targets[:, :, 0] >= 0
    found = torch.cat([targets[:, :, :1], right[:, :, None] * 0.8, targets[:, :, 1:]], 2)
    found[:, :, 0].clamp_(min=0)
    counts, objects = histograms(found, targets, CLASSES + 1, RANGES)
    precision = average_precision(counts, objects)
    np.testing.assert_allclose(precision[:CLASSES, 0], 1)
    assert np.isnan(precision[CLASSES]).all()
    assert recall_curve(counts[0, 0, 0], objects[0, 0]) == [(1.0, 1.0)]


def test_f1_counts_what_has_at_least_the_score() -> None:
    rows: list[Row] = [(0, 0, 0, 20, 20), (0, 40, 40, 60, 60), (1, 0, 40, 20, 60)]
    found = torch.zeros(1, 4, 6)
    found[0, 0] = torch.tensor([0, 0.9, 0, 0, 20, 20])  # right
    found[0, 1] = torch.tensor([0, 0.3, 40, 40, 60, 60])  # right, and just sure enough
    found[0, 2] = torch.tensor([0, 0.4, 10, 60, 30, 80])  # wrong
    found[0, 3] = torch.tensor([1, 0.29, 0, 40, 20, 60])  # right, but not sure enough
    counts, objects = histograms(found, pack([rows], [()]), 3, RANGES)
    told = f1(counts, objects, 0.3)[:, 0]
    assert told[:2].tolist() == [pytest.approx(2 * 2 / (3 + 2)), 0]
    assert np.isnan(told[2])  # no object
    assert f1(counts, objects, 0.0)[1, 0] == 1
    assert f1(counts, objects, 1.0)[0, 0] == 0


@pytest.mark.parametrize("squeeze", [0.0, 0.002, 0.9975])
def test_scores_that_bunch_keep_their_order(squeeze: float) -> None:
    """Scores of 0.002 to 0.0045, or of 0.9975 to 1, which shared three bins of 1/1000."""
    found, targets = scene(5, 30)
    if squeeze:
        sure = found[:, :, 1] > 0
        found[:, :, 1][sure] = squeeze + 0.0025 * found[:, :, 1][sure]
    counts, objects = histograms(found, targets, CLASSES, RANGES)
    ours, spare = average_precision(counts, objects), slack(counts, objects)
    exact = theirs(found, targets).transpose(1, 2, 0)
    assert np.all(abs(ours - exact) <= spare + 1e-9)
    assert ours[:, 0].mean() == pytest.approx(exact[:, 0].mean(), abs=6e-3)
    assert spare[:, 0].mean() < 0.03


def test_a_bin_holds_the_scores_around_its_middle() -> None:
    assert place(middles()).tolist() == list(range(len(middles())))
    scores = np.sort(np.random.default_rng(0).random(1000))
    assert (np.diff(place(scores)) >= 0).all()
    assert place([0.0, 1.0]).tolist() == [0, len(middles()) - 1]
