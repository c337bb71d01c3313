"""The validation part, which history's figures are measured on: the source's, or a share of each
site's training images that is set aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsight.core.draws import draws
from fedsight.core.errors import Problem
from fedsight.data.base import Dataset, Indices
from fedsight.data.partition import Groups, Partition, Split
from fedsight.tasks.base import Task


def problems(share: float, split: Split, task: Task) -> list[Problem]:
    """Why `rounds.validation` cannot set images aside; nothing is wrong with 0."""
    if share and split.shares:
        cause = "sites of this split may hold the same images, so none can be set aside"
        return [Problem("rounds.validation", cause, "leave it out, or choose another split")]
    if share and task.whole:
        cause = "this task is tested on people who are not trained on, but sites train on theirs"
        cure = "leave it out, or give the data a validation part with other people"
        return [Problem("rounds.validation", cause, cure)]
    return []


def set_aside(
    partition: Partition, share: float, seed: int
) -> tuple[Partition, tuple[Indices, ...]]:
    """The partition without a `share` of each site's images, and what was taken from each site.

    A site of n images keeps at least one and gives n * share, rounded down. Which ones follows
    from the seed and the site's name.
    """
    kept, taken = [], []
    for site in range(len(partition)):
        mine = partition.indices(site)
        count = min(int(len(mine) * share), max(0, len(mine) - 1))
        order = draws(seed, "validation", partition.name(site)).permutation(len(mine))
        taken.append(mine[np.sort(order[:count])])
        kept.append(mine[np.sort(order[count:])])
    names = [partition.name(site) for site in range(len(partition))]
    return Groups(kept, names), tuple(taken)


def tested_on(dataset: Dataset, aside: Sequence[Indices], partition: Partition) -> Dataset:
    """The data set with the images `aside` of each site in place of the test part.

    They are places in the training part, which is kept whole; the others belong to no site.
    """
    owners = [""] * len(dataset.train)
    for site, chosen in enumerate(aside):
        for place in chosen.tolist():
            owners[place] = partition.name(site)
    return replace(dataset, test=replace(dataset.train, sites=owners), validation=None)
