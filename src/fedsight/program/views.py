"""Test views: which test images are measured, and as which site sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedsight.data.base import Dataset, Indices
from fedsight.data.partition import Partition

LISTED = 200  # sites with their own figures; of a larger population, the first ones


@dataclass(frozen=True)
class View:
    """Test images as one site sees them, or without any site's shift if `site` is None."""

    site: int | None
    indices: Indices


def listed(partition: Partition) -> range:
    """The sites with their own figures."""
    return range(min(len(partition), LISTED))


def views_of(dataset: Dataset, partition: Partition, differ: bool) -> Iterator[View]:
    """The test views; `differ`: sites have personal models or see shifted images."""
    everything = np.arange(len(dataset.test))
    if dataset.test.sites is not None:
        # The source assigns test images to sites; images of no listed site are tested too.
        origins = np.asarray(dataset.test.sites)
        left = np.ones(len(everything), dtype=bool)
        for site in listed(partition):
            mine = origins == partition.name(site)
            if mine.any():
                left &= ~mine
                yield View(site, everything[mine])
        if left.any():
            yield View(None, everything[left])
        return
    if differ:
        for site in listed(partition):
            yield View(site, everything)
        return
    yield View(None, everything)
