"""The validation part, which history's figures are measured on: the source's, or a share of each
site's training images that is set aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsight.core.draws import Draws, draws
from fedsight.core.errors import Problem
from fedsight.data.base import Dataset, Indices
from fedsight.data.partition import Groups, Partition, Split
from fedsight.tasks.base import Task

Names = Sequence[str | None]  # of the group of each image


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
    partition: Partition, share: float, seed: int, groups: Names | None = None
) -> tuple[Partition, tuple[Indices, ...]]:
    """The partition without a `share` of each site's images, and what was taken from each site.

    A site of n images keeps at least one and gives n * share, rounded down. Which ones follows
    from the seed and the site's name. Of images that belong together by `groups` (one name or None
    per training image) whole groups are given, n of them being counted instead: at least one where
    n * share images would be, if there are two. A group at several sites is trained on.
    """
    kept, taken = [], []
    torn = _torn(partition, groups) if groups is not None else frozenset()
    for site in range(len(partition)):
        mine = partition.indices(site)
        drawn = draws(seed, "validation", partition.name(site))
        if groups is None:
            count = min(int(len(mine) * share), max(0, len(mine) - 1))
            order = drawn.permutation(len(mine))
            given = np.sort(order[:count])
        else:
            given = _whole(mine, groups, torn, share, drawn)
        taken.append(mine[given])
        kept.append(np.delete(mine, given))
    names = [partition.name(site) for site in range(len(partition))]
    return Groups(kept, names), tuple(taken)


def _torn(partition: Partition, groups: Names) -> frozenset[str]:
    """The groups with images at several sites."""
    home: dict[str, int] = {}
    found = set()
    for site in range(len(partition)):
        for place in partition.indices(site).tolist():
            name = groups[place]
            if name is not None and home.setdefault(name, site) != site:
                found.add(name)
    return frozenset(found)


def _whole(
    mine: Indices, groups: Names, torn: frozenset[str], share: float, drawn: Draws
) -> Indices:
    """Which of a site's images `mine` [n] are set aside, ascending: those of whole groups."""
    members: dict[object, list[int]] = {}
    for at, place in enumerate(mine.tolist()):
        name = groups[place]
        members.setdefault(place if name is None else name, []).append(at)
    free = [places for name, places in members.items() if name not in torn]
    count = max(1, int(len(members) * share)) if int(len(mine) * share) else 0
    count = min(count, max(0, len(members) - 1))
    order = drawn.permutation(len(free))[:count]
    return np.array(sorted(at for one in order.tolist() for at in free[one]), dtype=np.int64)


def tested_on(dataset: Dataset, aside: Sequence[Indices], partition: Partition) -> Dataset:
    """The data set with the images `aside` of each site in place of the test part.

    They are places in the training part, which is kept whole; the others belong to no site.
    """
    owners = [""] * len(dataset.train)
    for site, chosen in enumerate(aside):
        for place in chosen.tolist():
            owners[place] = partition.name(site)
    return replace(dataset, test=replace(dataset.train, sites=owners), validation=None)
