"""Overall figures have an interval from what they rest on, or a reason why there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, write_config
from PIL import Image

from fedsight.evaluation.overall import GROUPS, interval
from fedsight.tasks.detection.precision import BINS, average_precision, place


def dice(pixels: np.ndarray) -> float:
    """Dice from sums of (both, either twice)."""
    return float(2 * pixels[0] / pixels[1])


@pytest.mark.parametrize("images", [40, 200])
@pytest.mark.parametrize("hard", [1.0, 4.0])
def test_the_jackknife_of_a_ratio_covers(images: int, hard: float) -> None:
    """Objects of very different sizes, of which more or less is found."""
    draws = np.random.default_rng(1)

    def drawn(count: int) -> np.ndarray:
        size = np.exp(draws.normal(0, 0.7, count)) * 50
        found = draws.beta(4 * hard, hard, count)
        return np.stack([size * found, 2 * size], axis=1)

    whole, held = dice(drawn(200_000).sum(0)), 0
    for _ in range(300):
        each = drawn(images)
        groups = [each[at::GROUPS].sum(0) for at in range(GROUPS)]
        left = [dice(each.sum(0) - one) for one in groups]
        low, high = interval(dice(each.sum(0)), left)
        held += low <= whole <= high
    assert held / 300 >= 0.92


class Boxes:
    """Images of a detector's test part: in a hard one it finds fewer objects, less exactly, is less
    sure of them and sees more that is not there. Score histograms [n, 1, 1, 2 overlaps, 2, BINS]
    and objects [n, 1, 1], as an image at a time gives them."""

    def __init__(self, draws: np.random.Generator, images: int) -> None:
        self.counts = np.zeros((images, 1, 1, 2, 2, BINS))
        self.objects = 1.0 + draws.poisson(2, (images, 1, 1))
        for image, hard in enumerate(draws.beta(1.5, 2.5, images)):
            here = int(self.objects[image, 0, 0])
            overlap = draws.beta(8 - 5 * hard, 2, here) * (draws.random(here) < 1 - 0.6 * hard)
            scores = place(draws.beta(5 * overlap + 1, 1 + 3 * hard))
            wrong = place(draws.beta(1 + hard, 3, draws.poisson(2 * hard)))
            for at, least in enumerate((0.5, 0.75)):
                seen = overlap > 0
                np.add.at(self.counts[image, 0, 0, at, 0], scores[seen & (overlap >= least)], 1)
                np.add.at(self.counts[image, 0, 0, at, 1], scores[seen & (overlap < least)], 1)
                np.add.at(self.counts[image, 0, 0, at, 1], wrong, 1)

    def precision(self, chosen: np.ndarray) -> float:
        """The mean average precision over overlaps on some images."""
        found = average_precision(self.counts[chosen].sum(0), self.objects[chosen].sum(0))
        return float(found.mean())


@pytest.mark.parametrize("images", [40, 150])
def test_the_jackknife_of_the_mean_average_precision_covers(images: int) -> None:
    draws = np.random.default_rng(2)
    population = Boxes(draws, 1000)
    whole, held = population.precision(np.arange(1000)), 0
    for _ in range(150):
        chosen = draws.choice(1000, images)
        left = [
            population.precision(chosen[np.arange(images) % GROUPS != at]) for at in range(GROUPS)
        ]
        low, high = interval(population.precision(chosen), left)
        held += low <= whole <= high
    assert held / 150 >= 0.9


def test_a_part_of_the_images_tells_the_spread_of_all() -> None:
    left = list(0.7 + 0.01 * np.linspace(-1, 1, GROUPS))
    low, high = interval(0.7, left)
    narrow = interval(0.7, left, part=0.25)
    assert (narrow[1] - narrow[0]) / (high - low) == pytest.approx(0.5, abs=0.02)


def test_without_a_spread_there_is_no_interval() -> None:
    assert math.isnan(interval(0.7, [0.7] * GROUPS)[0])
    assert math.isnan(interval(1.0, [1.0, 0.9] * (GROUPS // 2))[0])
    assert math.isnan(interval(0.7, [math.nan] * GROUPS)[0])


def result(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(
        json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "summary")
    )


def masks(folder: Path, images: int) -> None:
    draws = np.random.default_rng(3)
    for at in range(images):
        mask = np.zeros((16, 16), np.uint8)
        top, left = draws.integers(0, 8, 2)
        mask[top : top + 6, left : left + 6] = 1
        image = np.clip(60 + 120 * mask + draws.normal(0, 40, mask.shape), 0, 255)
        for kind, pixels in (("images", image.astype(np.uint8)), ("masks", mask)):
            path = folder / f"scans/{kind}/{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(("images", "known"), [(120, True), (60, False)])
def test_dice_of_a_run(tmp_path: Path, images: int, known: bool) -> None:
    masks(tmp_path, images)
    data = {"name": "masks", "path": "scans", "size": 16, "channels": 1, "test_fraction": 0.4}
    config = write_config(
        tmp_path,
        data={**data, "classes": ["background", "block"]},
        split={"name": "iid", "sites": 2},
        task={"name": "segment"},
        model={"name": "unet", "width": 4, "levels": 2},
        train={"lr": 0.1},
    )
    answer = done("run", config, "--out", tmp_path / "run")
    evaluation, summary = result(tmp_path / "run")
    dice = evaluation["figures"]["dice"]
    page = (tmp_path / "run/report.html").read_text()
    if not known:
        assert dice["low"] is None
        assert summary["score_interval"] is None
        assert evaluation["no_interval"] == "it needs 40 test images, or groups of them"
        assert "has no interval" in page
        return
    assert dice["low"] < dice["value"] < dice["high"]
    assert dice["high"] - dice["low"] < 0.5
    assert [dice["low"], dice["high"]] == summary["score_interval"]
    assert evaluation["figures"]["iou"]["low"] < evaluation["figures"]["iou"]["value"]
    assert "95 % interval" in answer.out
    assert evaluation["no_interval"] == ""


def test_images_of_one_group_count_as_one(tmp_path: Path) -> None:
    """Ten nearly equal pictures of each of 50 test patients are not 500 patients."""
    draws = np.random.default_rng(5)
    for patient in range(100):
        label = patient % 2
        scan = 100 + 12 * label + draws.normal(0, 12) + draws.normal(0, 25, (8, 8))
        for at in range(10):
            pixels = np.clip(scan + draws.normal(0, 2, (8, 8)), 0, 255).astype(np.uint8)
            path = tmp_path / f"scans/{'ab'[label]}/p{patient}_{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    found = {}
    for group in ("{group}_*", None):
        data = {"name": "folder", "path": "scans", "size": 8, "channels": 1, "test_fraction": 0.5}
        data |= {"near_duplicates": "report"} | ({} if group is None else {"group": group})
        config = write_config(tmp_path, data=data, split={"name": "iid", "sites": 2})
        folder = tmp_path / str(group is None)
        done("run", config, "--out", folder)
        evaluation, _ = result(folder)
        one = evaluation["figures"]["accuracy"]
        if one["low"] is None:
            pytest.fail(evaluation["no_interval"])
        found[group] = one["high"] - one["low"]
    assert found["{group}_*"] > 1.5 * found[None]
