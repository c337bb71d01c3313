"""A few test images for any task, one of which somebody has planted, and their noised sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsight.client.step import Client
from fedsight.core.types import Metrics
from fedsight.data.base import ArrayImages, Part
from fedsight.data.detection import boxes
from fedsight.privacy.noised_sums import deviation
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData

SIDE, CLASSES = 16, 4
PIXELS = ("noise", "black", "nan", "infinite", "bright")


@dataclass(frozen=True)
class Planted:
    """What the planted image is like."""

    pixels: str = "noise"
    objects: int = 1  # for tasks with boxes
    label: int = 0
    seed: int = 0


def part(task: str, count: int, planted: Planted) -> Part:
    """`count` images [1, 16, 16], the last of them planted."""
    rng = np.random.default_rng(7)
    pixels = rng.random((count, 1, SIDE, SIDE), dtype=np.float32)
    mine = np.random.default_rng(planted.seed)
    fill = {"black": 0.0, "nan": np.nan, "infinite": np.inf, "bright": 1e30}
    pixels[-1] = fill.get(planted.pixels, mine.random((1, SIDE, SIDE), dtype=np.float32))
    labels = rng.integers(0, CLASSES, count)
    labels[-1] = planted.label
    images = ArrayImages(torch.from_numpy(pixels), "planted")
    return Part(images, labels, None, _targets(task, labels, planted, mine))


def _targets(
    task: str, labels: np.ndarray, planted: Planted, mine: np.random.Generator
) -> Tensor | None:
    rng, count = np.random.default_rng(8), len(labels)
    if task == "multilabel":
        found = rng.integers(0, 2, (count, CLASSES))
        found[-1] = 1 if planted.objects > 1 else mine.integers(0, 2, CLASSES)
        return torch.from_numpy(found.astype(np.float32))
    if task == "segment":
        masks = rng.integers(0, CLASSES, (count, SIDE, SIDE))
        masks[-1] = planted.label
        return torch.from_numpy(masks.astype(np.uint8))
    if task == "detect":
        rows = [[_row(rng) for _ in range(i % 3)] for i in range(count - 1)]
        rows.append([_row(mine) for _ in range(planted.objects)])
        return boxes.pack(rows, [[]] * count)
    return None


def _row(rng: np.random.Generator) -> tuple[float, float, float, float, float]:
    left, top = rng.uniform(0, 8, 2)
    return (float(rng.integers(CLASSES)), left, top, left + rng.uniform(2, 8), top + 5.0)


def site(part: Part, chosen: int) -> SiteData:
    """The first images as a site's test part."""
    indices = torch.arange(chosen)
    return SiteData(part, indices, torch.zeros_like(indices), lambda x, origin, of: x)


def released(client: Client, of: Federation, data: SiteData) -> Metrics:
    """The sums that noise is added to."""
    bounds = of.program.task.bounds(CLASSES, SIDE * SIDE)
    assert bounds is not None
    return client.measure_each(data, bounds)


def apart(of: Federation, one: Metrics, other: Metrics) -> float:
    """The distance of sums in standard deviations of their noise at a multiplier of 1."""
    task = of.program.task
    bounds = task.bounds(CLASSES, SIDE * SIDE)
    assert bounds is not None
    wide = deviation(bounds, 1.0, task.whole)
    parts = [(one[name].total - other[name].total).ravel() / wide[name] for name in wide]
    return float(np.linalg.norm(np.concatenate(parts)))
