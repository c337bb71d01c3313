"""Finds images that look alike among many, without comparing each with each.

Looks are points on a sphere; two images are alike if their points are near. The distance between
two points is at least that between their projections, so the search lays the projections onto the
main directions of the data into cells as wide as the largest distance sought: what is near is in
the same cell or in a neighbouring one. Nothing is missed, and few pairs are left to compare.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIKE = 0.995  # least correlation of two looks; measured in docs/how-to/own-data.md
_CELLS = 4  # main directions that make the cells
_FILTER = 24  # main directions that are compared before whole looks are
_SAMPLED = 4096  # looks that decide the main directions
_PAIRS = 1 << 20  # compared at once
_SLACK = 2e-3  # the error of float16
Numbers = npt.NDArray[np.int64]


def sets_alike(looks: Tensor, least: float = ALIKE) -> Numbers:
    """The set of each image [n], numbered by its first image.

    Two images are of one set if the correlation of their `looks` [n, d] (float16, as `Prints` has
    them) is at least `least`, or if a chain of such pairs joins them.
    """
    sets = np.arange(len(looks), dtype=np.int64)
    shown = np.flatnonzero(looks.ne(0).any(1).numpy())
    if len(shown) > 1:
        found = _Search(looks[torch.from_numpy(shown)], least).sets()
        sets[shown] = shown[found]
    return sets


class _Search:
    """One search; all looks have the length 1."""

    def __init__(self, looks: Tensor, least: float) -> None:
        self._looks, self._least = looks, least
        self._radius = float(np.sqrt(2 * (1 - least))) + _SLACK
        self._near = _projected(looks)
        self._sets = np.arange(len(looks), dtype=np.int64)
        cells = np.floor(self._near[:, :_CELLS] / self._radius).astype(np.int64)
        cells -= cells.min(0) - 1
        steps = np.cumprod([1, *(cells.max(0)[:-1] + 2)])
        keys = cells @ steps
        self._order = np.argsort(keys, kind="stable")
        self._keys, self._starts, self._sizes = np.unique(
            keys[self._order], return_index=True, return_counts=True
        )
        around = itertools.product((-1, 0, 1), repeat=cells.shape[1])
        self._shifts = sorted({int(np.dot(one, steps)) for one in around} - {0})

    def sets(self) -> Numbers:
        """The set of each look, numbered by the first of it."""
        leaders = self._order[np.repeat(self._starts, self._sizes)]
        self._join(self._order, leaders)  # a crowded cell is often one set, and then done with
        every = np.arange(len(self._keys))
        self._compare(every, every)
        for shift in (one for one in self._shifts if one > 0):
            at = np.searchsorted(self._keys, self._keys + shift)
            there = at < len(self._keys)
            there[there] = self._keys[at[there]] == self._keys[there] + shift
            self._compare(every[there], at[there])
        return self._sets

    def _compare(self, some: Numbers, others: Numbers) -> None:
        """Compare the members of each cell in `some` with those of its partner in `others`."""
        ordered = self._sets[self._order]
        low = np.minimum.reduceat(ordered, self._starts)
        high = np.maximum.reduceat(ordered, self._starts)
        lowest = np.minimum(low[some], low[others])
        open_ = lowest != np.maximum(high[some], high[others])
        for first, second in self._pairs(some[open_], others[open_]):
            different = (self._sets[first] != self._sets[second]) & (first != second)
            self._join(first[different], second[different])

    def _pairs(self, some: Numbers, others: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        """All pairs of members of the cells, about `_PAIRS` at once."""
        starts, sizes = self._starts[some], self._sizes[some]
        across = self._sizes[others]
        # cells with too many pairs are divided into rows of one member each
        wide = sizes * across > _PAIRS
        rows = np.repeat(np.arange(len(some)), np.where(wide, sizes, 1))
        place = np.arange(len(rows)) - np.repeat(
            np.cumsum(np.where(wide, sizes, 1)) - np.where(wide, sizes, 1),
            np.where(wide, sizes, 1),
        )
        starts, others = starts[rows] + place, others[rows]
        sizes = np.where(wide, 1, sizes)[rows]
        counts = sizes * self._sizes[others]
        ends = np.cumsum(counts)
        done = 0
        while done < len(counts):
            before = ends[done - 1] if done else 0
            until = max(done + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
            part = slice(done, until)
            owner = np.repeat(np.arange(done, until), counts[part])
            offset = np.arange(len(owner)) - np.repeat(
                ends[part] - counts[part] - before, counts[part]
            )
            width = self._sizes[others[owner]]
            first = self._order[starts[owner] + offset // width]
            second = self._order[self._starts[others[owner]] + offset % width]
            yield first, second
            done = until

    def _join(self, first: Numbers, second: Numbers) -> None:
        """Make one set of each pair that is alike."""
        for start in range(0, len(first), _PAIRS):
            a, b = first[start : start + _PAIRS], second[start : start + _PAIRS]
            gap = self._near[a] - self._near[b]
            close = np.einsum("nd,nd->n", gap, gap) <= self._radius**2
            a, b = a[close], b[close]
            for at in range(0, len(a), 1 << 16):
                one, other = a[at : at + (1 << 16)], b[at : at + (1 << 16)]
                pair = [self._looks[torch.from_numpy(i)].float() for i in (one, other)]
                same = ((pair[0] * pair[1]).sum(1) >= self._least).numpy()
                self._sets = joined(self._sets, one[same], other[same])


def joined(sets: Numbers, first: Numbers, second: Numbers) -> Numbers:
    """The sets [n], each numbered by its first member, after joining those of each pair."""
    sets = sets.copy()
    while True:
        a, b = sets[first], sets[second]
        differ = a != b
        if not differ.any():
            return sets
        np.minimum.at(sets, np.maximum(a, b)[differ], np.minimum(a, b)[differ])
        while not np.array_equal(sets, sets[sets]):
            sets = sets[sets]


def _projected(looks: Tensor) -> npt.NDArray[np.float32]:
    """The looks [n, d] in their main directions [n, at most _FILTER]."""
    step = max(1, len(looks) // _SAMPLED)
    sample = looks[::step].float()
    vectors = torch.linalg.eigh(sample.T @ sample)[1].flip(1)[:, :_FILTER]
    projected = torch.cat([part.float() @ vectors for part in looks.split(_SAMPLED)])
    result: npt.NDArray[np.float32] = projected.numpy()
    return result
